"""Colours of program code that is still growing."""

from __future__ import annotations

import re
from itertools import accumulate

from chatglm.ui.highlighting import tokens
from chatglm.ui.terminal.inline_markup import Pieces

# What the terminal's own palette names, readable on dark and light, for the kinds of `highlighting.tokens`.
COLOURS = {"c": "90", "k": "35", "s": "32", "m": "36", "f": "34", "a": "36", "b": "33", "i": "32", "d": "31"}
# Of these more text changes nothing but the end; they may begin on an earlier line.
OPEN = ("c", "s")
# What more text may still turn into another kind: a word, or what may begin a comment, a variable or a tag.
UNDECIDED = re.compile(r"[\w$@#./<&-]*\Z")
MAX_OPEN = 4000


class CodeColours:
    """Gives out each line of a program in pieces, words as soon as they are whole.

    A line is read by itself, or with those before it in which a string or comment began that is still open: reading
    the whole program for every token of an answer would take longer than the token.
    """

    def __init__(self, language: str) -> None:
        self._language = language
        self._open, self._line, self._num_given = "", "", 0

    def push(self, text: str) -> Pieces:
        """What is certain of the line with `text` added."""
        self._line += text
        return self._give(is_all=False)

    def finish(self) -> Pieces:
        """The rest of the line."""
        return self._give(is_all=True)

    def end_line(self) -> None:
        """The next text begins a line."""
        text = f"{self._open}{self._line}\n"
        self._open, self._line, self._num_given = self._still_open(text), "", 0

    def _give(self, *, is_all: bool) -> Pieces:
        pieces: Pieces = []
        for end, kind in self._tokens(f"{self._open}{self._line}"):
            end -= len(self._open)
            if not is_all and end == len(self._line) and kind not in OPEN:
                end = UNDECIDED.search(self._line).start()  # type: ignore[union-attr]
            if end > self._num_given:
                pieces.append((self._line[self._num_given : end], COLOURS.get(kind, "")))
                self._num_given = end
        return pieces

    def _still_open(self, text: str) -> str:
        """The end of `text` from the line on in which a string or comment begins that goes on after it; else ""."""
        start = len(text) + 1
        ends = [(0, ""), *self._tokens(f"{text}x")]
        for (before, _), (_, kind) in zip(reversed(ends[:-1]), reversed(ends), strict=False):
            if kind not in OPEN:
                break
            start = before
        return text[text.rfind("\n", 0, start) + 1 :] if start <= len(text) < start + MAX_OPEN else ""

    def _tokens(self, text: str) -> list[tuple[int, str]]:
        """The end of each token and its kind."""
        found = list(tokens(text, self._language))
        return list(zip(accumulate(len(part) for part, _ in found), (kind for _, kind in found), strict=True))
