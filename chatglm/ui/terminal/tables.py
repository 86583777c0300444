"""Tables of Markdown, set with aligned columns."""

from __future__ import annotations

import re
from collections.abc import Sequence

from chatglm.cells import cell_width
from chatglm.ui.terminal.inline_markup import BOLD, InlineMarkup, Pieces

RULE = re.compile(r"\s*\|?(?:\s*:?-+:?\s*\|)*\s*:?-+:?\s*\|?\s*")
CELL_END = re.compile(r"(?<!\\)\|")


def is_table(lines: Sequence[str]) -> bool:
    """Whether there is a header with a rule below."""
    return len(lines) > 1 and RULE.fullmatch(lines[1]) is not None


def set_table(lines: Sequence[str], width: int) -> list[Pieces] | None:
    """The lines of a table (`is_table`) in pieces; None if it is wider than `width` cells."""
    header, alignment, *rows = [_cells(line) for line in lines]
    num_columns = max(map(len, (header, *rows)))
    table = [[_pieces(cell) for cell in row] + [[]] * (num_columns - len(row)) for row in (header, *rows)]
    widths = [max(_width(row[column]) for row in table) for column in range(num_columns)]
    if sum(widths) + 3 * (num_columns - 1) > width:
        return None
    is_right = [rule.endswith(":") and not rule.startswith(":") for rule in alignment] + [False] * num_columns
    head = [[(text, f"{BOLD};{code}".rstrip(";")) for text, code in cell] for cell in table[0]]
    rule: Pieces = [("─┼─".join("─" * cells for cells in widths), "2")]
    return [_row(head, widths, is_right), rule, *(_row(row, widths, is_right) for row in table[1:])]


def _cells(line: str) -> list[str]:
    inner = line.strip().removeprefix("|")
    cells = CELL_END.split(inner)
    return [cell.strip().replace("\\|", "|") for cell in (cells[:-1] if not cells[-1].strip() else cells)]


def _pieces(cell: str) -> Pieces:
    markup = InlineMarkup()
    return [*markup.push(cell), *markup.finish()]


def _width(pieces: Pieces) -> int:
    return sum(cell_width(text) for text, _ in pieces)


def _row(row: Sequence[Pieces], widths: Sequence[int], is_right: Sequence[bool]) -> Pieces:
    line: Pieces = []
    for column, (cell, width) in enumerate(zip(row, widths, strict=True)):
        blank = [(" " * (width - _width(cell)), "")]
        line += [(" │ ", "2")] * (column > 0) + (blank + cell if is_right[column] else cell + blank)
    return line
