"""Markdown of an answer on a terminal, styled while it is generated.

What is written stays: text is given out once it is certain how it looks, mostly at once. Only a table, which needs all
of its rows, stands there as it came until it ends; it is then drawn again, if nothing can have moved it meanwhile.
"""

from __future__ import annotations

import re
import shutil
import unicodedata
from collections.abc import Callable, Iterable

from chatglm.ui.terminal.code_colours import CodeColours
from chatglm.ui.terminal.inline_markup import BOLD, InlineMarkup
from chatglm.ui.terminal.tables import is_table, set_table

DIM, HEADING = "2", f"{BOLD};36"
RULE_CELLS = 40
FENCE = re.compile(r" *(`{3,}|~{3,}) *([^\s`]*)[^`]*")
RULE = re.compile(r" {0,3}([-*_])(?: *\1){2,} *")
BLOCK = re.compile(r"( *)(?:(#{1,6}) +|([-*+]) +|(>) ?)")
# The start of a line that may still become a fence, a rule, a heading or an item.
UNDECIDED = re.compile(r" *(?:#{0,6}|[-*_][-*_ ]*|[+>]|`{1,2}|`{3,}[^`]*|~{1,2}|~{3,}.*)")


class MarkdownWriter:
    """Writes one answer with `write`; `earlier` is the part of it that stands on the screen already."""

    def __init__(self, write: Callable[[str], None], earlier: str = "") -> None:
        self._output: list[str] = []
        self._start: str | None = ""  # of a line of which nothing is decided
        self._style = ""
        self._inline = InlineMarkup()
        self._fence = ""
        self._code = CodeColours("")
        self._row: str | None = None
        self._rows: list[str] = []
        self._is_first_line = True
        self._is_drawable = False
        self._size = shutil.get_terminal_size()
        self._write: Callable[[str], None] = lambda text: None
        self.push(earlier)
        self.keep_lines()
        self._write = write

    def push(self, text: str) -> None:
        for number, part in enumerate(text.split("\n")):
            if number:
                self._end_line()
            if part:
                self._add(part)
        self._flush()

    def finish(self) -> None:
        """Give out what was held back."""
        self._settle()
        self._end_table(is_below=False)
        self._flush()

    def keep_lines(self) -> None:
        """Nothing that was written may be drawn again."""
        self._is_drawable = False

    def _add(self, part: str) -> None:
        if self._row is not None:
            self._row += part
            self._emit(part)
        elif self._start is None:
            self._emit_all(self._code.push(part) if self._fence else self._inline.push(part))
        else:
            self._start += part
            if self._fence:
                self._begin_code_line()
            elif self._start.lstrip(" ").startswith("|"):
                self._begin_row()
            elif not UNDECIDED.fullmatch(self._start):
                self._begin_line()

    def _begin_code_line(self) -> None:
        """A line of code, unless it may become the end of the block."""
        if (self._start or "").strip(" ").strip(self._fence[0]):
            self._emit_all(self._code.push(self._start or ""))
            self._start = None

    def _begin_row(self) -> None:
        if not self._rows:
            self._emit("\n" if self._is_first_line else "")  # below the label
            self._size, self._is_drawable = shutil.get_terminal_size(), True
        self._row, self._start = self._start, None
        self._emit(self._row or "")

    def _begin_line(self) -> None:
        self._end_table()
        line, self._start = self._start or "", None
        if (block := BLOCK.match(line)) is not None:
            indent, heading, bullet, quote = block.groups()
            self._style = HEADING if heading else ""
            self._emit(indent + ("• " if bullet else ""))
            self._emit("│ " if quote else "", DIM)
            line = line[block.end() :]
        self._emit_all(self._inline.push(line))

    def _end_line(self) -> None:
        self._settle()
        self._start, self._style, self._is_first_line = "", "", False
        self._emit("\n")

    def _settle(self) -> None:
        """Give out the rest of the line."""
        if self._row is not None:
            self._rows.append(self._row)
            self._row = None
        elif self._fence:
            self._settle_code()
        elif self._start is None:
            self._emit_all(self._inline.finish())
        elif (fence := FENCE.fullmatch(self._start)) is not None:
            self._end_table()
            self._emit(self._start, DIM)
            self._fence, self._code = fence[1], CodeColours(fence[2])
        elif RULE.fullmatch(self._start):
            self._end_table()
            self._emit("─" * RULE_CELLS, DIM)
        else:
            self._begin_line()
            self._emit_all(self._inline.finish())
        self._start = None

    def _settle_code(self) -> None:
        line = self._start
        if line is None:
            self._emit_all(self._code.finish())
        elif line.strip() and len(line.strip()) >= len(self._fence):
            self._emit(line, DIM)
            self._fence = ""
            return
        else:
            self._emit_all([*self._code.push(line), *self._code.finish()])
        self._code.end_line()

    def _end_table(self, *, is_below: bool = True) -> None:
        """Draw the rows that have come as a table. `is_below`: the cursor stands on the line after the last one."""
        rows, self._rows = self._rows, []
        is_safe = self._is_drawable and self._size == shutil.get_terminal_size() and len(rows) < self._size.lines - 1
        if not is_safe or not is_table(rows) or any(_widest(row) > self._size.columns for row in rows):
            return
        if (lines := set_table(rows, self._size.columns)) is None:
            return
        num_up = len(rows) - (not is_below)
        self._emit(f"\x1b[{num_up}A\r\x1b[J" if num_up else "\r\x1b[J")
        for number, line in enumerate(lines):
            self._emit("\n" if number else "")
            self._emit_all(line)
        self._emit("\n" if is_below else "")

    def _emit_all(self, pieces: Iterable[tuple[str, str]]) -> None:
        for text, code in pieces:
            self._emit(text, code)

    def _emit(self, text: str, code: str = "") -> None:
        codes = ";".join(filter(None, (self._style, code)))
        self._output.append(f"\x1b[{codes}m{text}\x1b[0m" if codes and text else text)

    def _flush(self) -> None:
        if text := "".join(self._output):
            self._write(text)
        self._output.clear()


def _widest(text: str) -> int:
    """Cells that `text` takes at most; terminals differ about characters such as quotation marks."""
    return sum(2 if unicodedata.east_asian_width(character) in "WFA" else 1 for character in text)
