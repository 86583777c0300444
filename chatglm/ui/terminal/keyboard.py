"""Keys typed while the program loads or answers: not shown, not lost, and handed to the next prompt.

Where there is no POSIX terminal this does nothing: a Windows console neither shows nor loses such keys.
"""

from __future__ import annotations

import os
import re
import select
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any, Self

with suppress(ImportError):
    import termios

END_OF_PASTING = b"\x1b[?2004l"
LOCAL_MODES = 3
# Cursor keys and the like, and the marks around pasted text.
ESCAPE_SEQUENCE = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|O.|[^\[O])?", re.DOTALL)
BACKSPACE, CTRL_U, CTRL_W = "\x7f\b", "\x15", "\x17"


class Keyboard:
    """The terminal of a chat, in a mode in which nothing is echoed and Ctrl+C and Ctrl+Z work as ever.

    The mode that was found is restored at the end of the `with` block, while the program is stopped (Ctrl+Z) and when a
    signal ends it. `on_continue` is called after a stop: others may have written to the terminal.
    """

    def __init__(self, *, is_used: bool) -> None:
        self._fd = sys.stdin.fileno() if is_used and "termios" in globals() else None
        self._found: list[Any] = []
        self._handled: list[int] = []
        self.on_continue: Callable[[], None] = lambda: None

    def __enter__(self) -> Self:
        if self._fd is not None:
            self._found = termios.tcgetattr(self._fd)
            self._hold()
            for number in (signal.SIGTERM, signal.SIGQUIT, signal.SIGTSTP):
                if signal.getsignal(number) == signal.SIG_DFL:
                    signal.signal(number, self._stop if number == signal.SIGTSTP else self._end)
                    self._handled.append(number)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number in self._handled:
            signal.signal(number, signal.SIG_DFL)
        self.restore()

    def restore(self) -> None:
        """Bring back the mode that was found."""
        self._set(self._found)

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Inside the block the terminal is as it was found, for somebody who reads lines from it."""
        self.restore()
        try:
            yield
        finally:
            self._hold()

    def typed(self) -> str:
        """The keys that were pressed and not read by anybody."""
        keys = b""
        while self._fd is not None and select.select([self._fd], [], [], 0)[0]:
            chunk = os.read(self._fd, 4096)
            if not chunk:
                break
            keys += chunk
        return keys.decode("utf-8", "replace")

    def _hold(self) -> None:
        if self._fd is not None:
            mode = [*self._found]
            # NOFLSH: Ctrl+C leaves what was typed before.
            mode[LOCAL_MODES] = mode[LOCAL_MODES] & ~(termios.ECHO | termios.ICANON | termios.IEXTEN) | termios.NOFLSH
            self._set(mode)

    def _set(self, mode: list[Any]) -> None:
        """Unless the terminal is gone, or the program in the background, where it would be stopped for this."""
        if self._fd is not None:
            with suppress(termios.error, OSError):
                if os.tcgetpgrp(self._fd) == os.getpgrp():
                    termios.tcsetattr(self._fd, termios.TCSANOW, mode)

    def _end(self, number: int, frame: FrameType | None) -> None:
        self.restore()
        if os.environ.get("TERM") not in ("dumb", "unknown"):
            os.write(1, END_OF_PASTING)  # the signal may have come while a line was being edited
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.restore()
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
        signal.signal(number, self._stop)  # from here on the program has been continued
        self._hold()
        self.on_continue()


def text_of_keys(keys: str) -> str:
    """What stands in the line after these keys; Enter at its end waits to be pressed again."""
    text = ""
    for key in ESCAPE_SEQUENCE.sub("", keys).replace("\r\n", "\n").replace("\r", "\n"):
        if key in BACKSPACE:
            text = text[:-1]
        elif key == CTRL_U:
            text = ""
        elif key == CTRL_W:
            text = text.rstrip()[: len(text.rstrip()) - len(text.split()[-1])] if text.split() else ""
        elif key >= " " or key in "\n\t":
            text += key
    return text.strip("\n")
