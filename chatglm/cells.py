"""Text in the cells of a terminal, where Chinese characters take two: its width, and lines that break between words."""

from __future__ import annotations

import re
import unicodedata

# A word, or a clause of Chinese, which has no spaces: with the punctuation that belongs to it.
_WORD = re.compile(r"\s+|[^\s，。；：、！？）]*[，。；：、！？）]+|[^\s，。；：、！？）]+")


def cell_width(text: str) -> int:
    """Cells that `text` takes; 0 for combining marks and control characters."""
    return len(text) if text.isascii() and text.isprintable() else sum(map(_character_width, text))


def cut(text: str, width: int) -> str:
    """As much of the start of `text` as fits into `width` cells."""
    while cell_width(text) > width:
        text = text[:-1]
    return text


def wrap(text: str, width: int, indent: str = "") -> list[str]:
    """Lines of at most `width` cells; those that continue another begin with `indent`."""
    return [line for paragraph in text.split("\n") for line in _wrap_paragraph(paragraph, width, indent)]


def _wrap_paragraph(paragraph: str, width: int, indent: str) -> list[str]:
    lines, line = [], ""
    for word in _WORD.findall(paragraph):
        if cell_width(line) + cell_width(word.rstrip()) <= width:
            line += word
            continue
        if line.strip():
            lines.append(line.rstrip())
            line = indent
        if cell_width(line) > width - 2:  # nothing but indentation
            line = ""
        rest = word.lstrip() if lines else word
        while cell_width(line + rest) > width and (part := cut(rest, max(2, width - cell_width(line)))):
            lines.append(line + part)
            line, rest = indent, rest[len(part) :]
        line += rest
    return [*lines, line.rstrip()]


def _character_width(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me", "Cf", "Cc"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
