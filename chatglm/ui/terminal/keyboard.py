"""Keys typed while the program loads or answers: not shown, not lost, and there for the next prompt to read.

Where there is no POSIX terminal this does nothing: a Windows console neither shows nor loses such keys.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any, Self

with suppress(ImportError):
    import termios

# The terminal puts marks around what is pasted, by which line breaks in it are told from Enter.
MARK_PASTES, MARK_NO_PASTES = b"\x1b[?2004h", b"\x1b[?2004l"
INPUT_MODES, LOCAL_MODES = 0, 3


class Keyboard:
    """The terminal of a chat, in a mode in which nothing is echoed and Ctrl+C and Ctrl+Z work as ever.

    The mode that was found is restored at the end of the `with` block, while the program is stopped (Ctrl+Z) and when a
    signal ends it. `on_continue` is called after a stop: others may have written to the terminal.
    """

    def __init__(self, *, is_used: bool) -> None:
        self._fd = sys.stdin.fileno() if is_used and "termios" in globals() else None
        self._found: list[Any] = []
        self._handled: list[int] = []
        self._marks_pastes = False
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

    def mark_pastes(self) -> None:
        """From now on what is pasted has marks, for a reader that knows them but turns them off after each line."""
        self._marks_pastes = self._fd is not None
        self._write(MARK_PASTES)

    def restore(self) -> None:
        """Bring back the mode that was found."""
        self._write(MARK_NO_PASTES)
        self._set(self._found)

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Inside the block the terminal is as it was found, for a reader that begins with that."""
        self.restore()
        try:
            yield
        finally:
            self._hold()

    def _hold(self) -> None:
        if self._fd is None:
            return
        mode = [*self._found]
        mode[INPUT_MODES] &= ~(termios.ICRNL | termios.INLCR | termios.IGNCR)
        # NOFLSH: Ctrl+C leaves what was typed before.
        mode[LOCAL_MODES] = mode[LOCAL_MODES] & ~(termios.ECHO | termios.ICANON | termios.IEXTEN) | termios.NOFLSH
        self._set(mode)
        self._write(MARK_PASTES)

    def _set(self, mode: list[Any]) -> None:
        """Unless the terminal is gone, or the program in the background, where it would be stopped for this."""
        if self._fd is not None:
            with suppress(termios.error, OSError):
                if os.tcgetpgrp(self._fd) == os.getpgrp():
                    termios.tcsetattr(self._fd, termios.TCSANOW, mode)

    def _write(self, code: bytes) -> None:
        if self._marks_pastes:
            with suppress(OSError):
                os.write(1, code)

    def _end(self, number: int, frame: FrameType | None) -> None:
        self.restore()
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.restore()
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
        signal.signal(number, self._stop)  # from here on the program has been continued
        self._hold()
        self.on_continue()
