"""A person at a terminal: types into a real pseudo-terminal and reads what stands on its screen."""

from __future__ import annotations

import os
import select
import termios
import time
from collections.abc import Callable

import pyte

from tests import forking

PATIENCE_S = 240
PROMPT = "用户："
CTRL_C, CTRL_D, BACKSPACE, ALT_ENTER, UP = "\x03", "\x04", "\x7f", "\x1b\r", "\x1b[A"


class Person:
    """Runs a Python program in a terminal of 40 lines.

    Attributes:
        chunks: what came from the program, as it came.
    """

    def __init__(
        self,
        command: list[str],
        environment: dict[str, str],
        folder: str | None = None,
        preload: tuple[str, ...] = forking.PROGRAM,
        columns: int = 100,
    ) -> None:
        self._screen = pyte.HistoryScreen(columns, 40, history=5000)
        self._stream = pyte.ByteStream(self._screen)
        self.chunks: list[bytes] = []
        self._program, self._terminal = forking.open_terminal(
            command, 40, columns, env=environment, cwd=folder, preload=preload
        )

    def type(self, text: str) -> None:
        """Press keys; end with a carriage return to press Enter."""
        os.write(self._terminal, text.encode())

    @property
    def text(self) -> str:
        """All of the output so far, as bytes were decoded, escape codes included."""
        return b"".join(self.chunks).decode("utf-8", "replace")

    @property
    def lines(self) -> list[str]:
        """What stands on the screen, without spaces at the ends."""
        return [line.rstrip() for line in self._screen.display]

    @property
    def has_echo(self) -> bool:
        """Whether the terminal shows what is typed by itself, as a shell expects to find it."""
        modes = termios.tcgetattr(self._terminal)[3]
        return bool(modes & termios.ECHO and modes & termios.ICANON)

    def send_signal(self, number: int) -> None:
        """As `kill` does."""
        self._program.send_signal(number)

    def wait_until(self, is_reached: Callable[[], bool]) -> None:
        """Read until something is so."""
        self._read_until(is_reached, "it")

    def wait_for(self, part: str, times: int = 1) -> None:
        """Read until `part` stands on so many lines of the screen."""
        self._read_until(lambda: sum(part in line for line in self.lines) >= times, f"{part!r} x {times}")

    def wait_for_prompt(self) -> None:
        """Read until the program waits for input: the cursor stands behind an empty prompt."""
        self._read_until(lambda: self._line_of_cursor() == PROMPT, "the prompt")

    def wait_for_end(self) -> int:
        """Read until the program has ended; returns its exit code."""
        self._read_until(lambda: False, "the end", may_end=True)
        return self._program.wait(PATIENCE_S)

    def ask(self, line: str) -> None:
        """Type a line and wait for the next prompt.

        Prompts are counted as they come, since the echo and the next prompt may arrive in one piece: the cursor would
        then never be seen anywhere but behind an empty prompt.
        """
        num_prompts = self.text.count(PROMPT)
        self.type(line + "\r")
        self._read_until(lambda: self.text.count(PROMPT) > num_prompts, "another prompt")
        self.wait_for_prompt()

    def __enter__(self) -> Person:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._program.kill()
        self._program.wait(PATIENCE_S)
        os.close(self._terminal)

    def _line_of_cursor(self) -> str:
        return self.lines[self._screen.cursor.y]

    def read_some(self) -> None:
        """Read whatever comes next, or nothing after a second.

        Raises:
            EOFError: the program has ended.
        """
        if not select.select([self._terminal], [], [], 1)[0]:
            return
        try:
            chunk = os.read(self._terminal, 4096)
        except OSError:  # Linux: the other end is closed
            raise EOFError from None
        self.chunks.append(chunk)
        self._stream.feed(chunk)

    def _read_until(self, is_reached: Callable[[], bool], what: str, may_end: bool = False) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not is_reached():
            try:
                self.read_some()
            except EOFError:
                if may_end:
                    return
                raise AssertionError(f"ended before {what}:\n" + "\n".join(self.lines)) from None
            assert time.monotonic() < deadline, f"no sign of {what}:\n" + "\n".join(self.lines)
