"""Where answers, notes and errors go: a person sees all, a pipe gets nothing but answers.

someone types, sees the output     answers with a label, notes: stdout      errors: stderr
a pipe on either side, --prompt    answers bare: stdout                     notes, errors: stderr
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field

from chatglm.cells import wrap
from chatglm.cli.console import report, terminal_width
from chatglm.ui.terminal.markdown_writer import MarkdownWriter

BOT_LABEL = "ChatGLM-6B："
# All control characters but line feed and tab: they could move the cursor, change colours or type into the shell.
UNSAFE = {code: "\N{REPLACEMENT CHARACTER}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}
CLEAR = "\x1b[H\x1b[2J\x1b[3J"
BOLD, DIM, END = "\x1b[1m", "\x1b[2m", "\x1b[0m"


def is_dumb() -> bool:
    """Whether the terminal understands no escape codes (a shell in Emacs, a serial console)."""
    return os.environ.get("TERM") in ("dumb", "unknown")


def has_style(*, is_plain: bool = False) -> bool:
    """Whether answers on stdout get Markdown and colour."""
    knows_codes = "WT_SESSION" in os.environ if os.name == "nt" else not is_dumb()
    return sys.stdout.isatty() and knows_codes and not is_plain and not os.environ.get("NO_COLOR")


@dataclass
class Screen:
    """Output of one chat. `has_person`: questions are typed; `is_terminal`: and stdout is seen by that person."""

    has_person: bool
    is_terminal: bool
    is_styled: bool = False
    _writer: MarkdownWriter | None = field(default=None, repr=False)

    @classmethod
    def of_streams(cls, has_prompt_flag: bool = False, is_plain: bool = False) -> Screen:
        has_person = not has_prompt_flag and sys.stdin is not None and sys.stdin.isatty()
        return cls(has_person, has_person and sys.stdout.isatty(), has_style(is_plain=is_plain))

    @property
    def width(self) -> int:
        """Cells of a line of notes."""
        return terminal_width() if self.is_terminal else 80

    def begin_answer(self, earlier: str = "") -> None:
        """`earlier` is what stands on the screen already of the answer that goes on."""
        if self.is_terminal:
            self._write(f"\n{BOLD}{BOT_LABEL}{END}" if self.is_styled else f"\n{BOT_LABEL}")
        self._writer = MarkdownWriter(self._write, earlier) if self.is_styled else None

    def show(self, text: str) -> None:
        """Append text of an answer, at once."""
        if not text:
            return
        if sys.stdout.isatty():
            text = text.translate(UNSAFE)
        if self._writer is not None:
            self._writer.push(text)
        else:
            self._write(text)

    def end_answer(self) -> None:
        if self._writer is not None:
            self._writer.finish()
            self._writer = None
        self._write("\n")

    def keep_lines(self) -> None:
        """Others have written to the terminal: nothing above the cursor can be drawn again."""
        if self._writer is not None:
            self._writer.keep_lines()

    def note(self, text: str) -> None:
        if not self.is_terminal:
            report(text)
            return
        lines = "\n".join(wrap(text.translate(UNSAFE), self.width))
        print(f"{DIM}{lines}{END}" if self.is_styled and lines else lines, flush=True)

    def error(self, text: str) -> None:
        sys.stdout.flush()
        report(text.translate(UNSAFE) if sys.stderr.isatty() else text)

    def clear(self) -> None:
        if not self.is_terminal:
            return
        if os.name == "nt":
            os.system("cls")
        elif not is_dumb():
            self._write(CLEAR)

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()
