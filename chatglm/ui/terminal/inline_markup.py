"""**Bold**, *italics* and `code` in a line of Markdown that is still growing."""

from __future__ import annotations

import re

# (text, SGR code or "")
Pieces = list[tuple[str, str]]

BOLD, ITALIC, CODE = "1", "3", "36"
SPANS = (
    (re.compile(r"(`+)(?![`\s])(?P<text>.+?)(?<!`)\1(?!`)"), CODE),
    (re.compile(r"\*\*\*(?=[^\s*])(?P<text>.+?)(?<=[^\s*])\*\*\*(?!\*)"), f"{BOLD};{ITALIC}"),
    (re.compile(r"\*\*(?=[^\s*])(?P<text>.+?)(?<=[^\s*])\*\*(?!\*)"), BOLD),
    (re.compile(r"\*(?=[^\s*])(?P<text>[^*]+?)(?<=\S)\*(?![*A-Za-z0-9])"), ITALIC),
)
MARKS = re.compile(r"\*+|`+")
# A start without an end is held back up to this length; then it is no start.
MAX_HELD = 200


class InlineMarkup:
    """Gives out a line in pieces, as soon as they are certain. Marks that mark nothing (2 * 3, 2**3) stay."""

    def __init__(self) -> None:
        self._held = ""
        self._before = ""

    def push(self, text: str) -> Pieces:
        return self._give(self._held + text, is_whole=False)

    def finish(self) -> Pieces:
        """What was held back; the next text begins a line."""
        pieces = self._give(self._held, is_whole=True)
        self._before = ""
        return pieces

    def _give(self, text: str, *, is_whole: bool) -> Pieces:
        pieces: Pieces = []
        position, self._held = 0, ""
        while (marks := MARKS.search(text, position)) is not None:
            pieces.append((text[position : marks.start()], ""))
            before = text[marks.start() - 1] if marks.start() else self._before
            # Stars after a Latin letter or a figure are operators.
            may_start = marks[0].startswith("`") or not (before.isascii() and before.isalnum())
            span = _span(text, marks.start()) if may_start else None
            is_growing = not is_whole and (
                marks.end() == len(text) or (span is not None and span[0].end() == len(text))
            )
            is_waiting = may_start and span is None and not is_whole and len(text) - marks.start() <= MAX_HELD
            if is_growing or (is_waiting and not text[marks.end()].isspace()):
                self._held = text[marks.start() :]
                text, position = text[: marks.start()], marks.start()
                break
            if span is not None:
                pieces.append((span[0]["text"], span[1]))
                position = span[0].end()
            else:
                pieces.append((marks[0], ""))
                position = marks.end()
        pieces.append((text[position:], ""))
        self._before = text[-1:] or self._before
        return [piece for piece in pieces if piece[0]]


def _span(text: str, start: int) -> tuple[re.Match[str], str] | None:
    found = ((pattern.match(text, start), code) for pattern, code in SPANS)
    return next(((match, code) for match, code in found if match is not None), None)
