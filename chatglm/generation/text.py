"""Cleaning of answers as they grow: `push` returns what nothing later can change.

Replacer holds back a tail that may begin the pattern, Stripper white space at the end, Widener one half-width mark.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from chatglm.model_spec import TextStage

# The model was trained to write this placeholder where its training date belongs.
TRAINING_TIME = ("[[训练时间]]", "2023年")
WIDE_MARKS = str.maketrans(",!:;?", "，！：；？")
_MARK_BESIDE_CHINESE = re.compile(r"(?<=[\u4e00-\u9fff])[,!:;?]|[,!:;?](?=[\u4e00-\u9fff])")
# transformers' clean_up_tokenization_spaces, in its order; kept here so that stream and whole share one table.
SPACE_RULES = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)


def whole_characters(text: str) -> str:
    """`text` with surrogate pairs joined, as Windows consoles give them; half of one becomes U+FFFD: JavaScript cuts an
    emoji in two, Python reads an undecodable byte of a command line as one.
    """
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def run_stages(stages: Iterable[TextStage], text: str) -> str:
    """A whole text through all stages."""
    for stage in stages:
        text = stage.push(text) + stage.finish()
    return text


def clean_up_spaces(text: str) -> str:
    """Remove the spaces that tokenization leaves before English marks and contractions."""
    for pattern, replacement in SPACE_RULES:
        text = text.replace(pattern, replacement)
    return text


class Replacer:
    """`str.replace(pattern, replacement)`, streamed."""

    def __init__(self, pattern: str, replacement: str) -> None:
        self._pattern = pattern
        self._replacement = replacement
        self._held = ""

    def push(self, text: str) -> str:
        if not self._held and self._pattern[0] not in text:
            return text
        text = self._held + text
        # Matches are found left to right, so only what follows the last one can still become part of a match.
        *replaced, tail = text.split(self._pattern)
        start = start_of_tail(tail, (self._pattern,))
        self._held = tail[start:]
        return self._replacement.join([*replaced, tail[:start]])

    def finish(self) -> str:
        rest, self._held = self._held, ""
        return rest


class Stripper:
    """`str.strip()`, streamed."""

    def __init__(self) -> None:
        self._begun = False
        self._held: list[str] = []

    def push(self, text: str) -> str:
        if not self._begun:
            text = text.lstrip()
            self._begun = bool(text)
        kept = text.rstrip()
        if not kept:
            # A list, not a growing string: ten thousand newlines in a row must not cost a quadratic copy.
            self._held.append(text)
            return ""
        decided = "".join(self._held) + kept
        self._held = [text[len(kept) :]]
        return decided

    def finish(self) -> str:
        self._held = []
        return ""


class Widener:
    """Wide `,!:;?` beside a Chinese character, streamed."""

    def __init__(self) -> None:
        self._before = ""
        self._held = ""

    def push(self, text: str) -> str:
        if not text:
            return ""
        # The last character stays behind as the left neighbour of what comes next; it is released at once unless
        # it is a mark that a Chinese character on its right could still widen.
        window = self._before + self._held + text
        widened = _MARK_BESIDE_CHINESE.sub(lambda mark: mark.group().translate(WIDE_MARKS), window)
        undecided = ord(window[-1]) in WIDE_MARKS and widened[-1] == window[-1]
        decided = widened[len(self._before) : len(widened) - undecided]
        self._held = window[-1] if undecided else ""
        self._before = window[:-1][-1:] if undecided else window[-1]
        return decided

    def finish(self) -> str:
        rest, self._held = self._held, ""
        return rest


def start_of_tail(text: str, patterns: Sequence[str]) -> int:
    """Where the longest tail of the text begins that is a true beginning of a pattern; its length if none is."""
    reach = max(map(len, patterns)) - 1
    for start in range(max(0, len(text) - reach), len(text)):
        tail = text[start:]
        if any(len(tail) < len(pattern) and pattern.startswith(tail) for pattern in patterns):
            return start
    return len(text)
