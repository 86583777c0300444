"""Where answers, notes and errors go: a person sees all, a pipe gets nothing but answers.

someone types, sees the output     answers with a label, notes: stdout      errors: stderr
a pipe on either side, --prompt    answers bare: stdout                     notes, errors: stderr
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

BOT_LABEL = "ChatGLM-6B："
# All control characters but line feed and tab: they could move the cursor, change colours or type into the shell.
UNSAFE = {code: "\N{REPLACEMENT CHARACTER}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}
CLEAR = "\x1b[H\x1b[2J\x1b[3J"


def is_dumb() -> bool:
    """Whether the terminal understands no escape codes (a shell in Emacs, a serial console)."""
    return os.environ.get("TERM") in ("dumb", "unknown")


@dataclass
class Screen:
    """Output of one chat. `has_person`: questions are typed; `is_terminal`: and stdout is seen by that person."""

    has_person: bool
    is_terminal: bool

    @classmethod
    def of_streams(cls, has_prompt_flag: bool = False) -> Screen:
        has_person = not has_prompt_flag and sys.stdin is not None and sys.stdin.isatty()
        return cls(has_person, has_person and sys.stdout.isatty())

    def begin_answer(self) -> None:
        if self.is_terminal:
            self._write(f"\n{BOT_LABEL}")

    def show(self, text: str) -> None:
        """Append text of an answer, at once."""
        if text:
            self._write(text.translate(UNSAFE) if sys.stdout.isatty() else text)

    def end_answer(self) -> None:
        self._write("\n")

    def note(self, text: str) -> None:
        print(text, file=sys.stdout if self.is_terminal else sys.stderr, flush=True)

    def error(self, text: str) -> None:
        sys.stdout.flush()
        print(text, file=sys.stderr, flush=True)

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
