"""Upstream's line about every answer, on stdout, without making a request wait for a slow reader."""

from __future__ import annotations

import os
import queue
import sys
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self

MAX_PENDING = 1000
CLOSING_SECONDS = 1.0


def answer_line(time: str, prompt: str, response: str) -> str:
    """The line in upstream's form. Control characters are escaped, so that no prompt can forge a line."""
    shown = "".join(char if char.isprintable() else repr(char)[1:-1] for char in prompt)
    return f'[{time}] ", prompt:"{shown}", response:"{response!r}"'


class LinePrinter:
    """Prints lines to a file descriptor (None = stdout) from its own thread; drops them if a thousand are pending.

    It bypasses Python's buffers, whose lock a blocked write would hold until the process is killed.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        self._descriptor = sys.stdout.fileno() if descriptor is None else descriptor
        self._encoding = sys.stdout.encoding or "utf-8"
        self._lines: queue.Queue[str | None] = queue.Queue(MAX_PENDING)
        self._thread = threading.Thread(target=self._run, name="chatglm-request-log", daemon=True)
        self._thread.start()

    def print(self, line: str) -> None:
        with suppress(queue.Full):
            self._lines.put_nowait(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait a moment for pending lines, but not for a reader that has stopped."""
        try:
            self._lines.put(None, timeout=CLOSING_SECONDS)
        except queue.Full:
            return
        self._thread.join(CLOSING_SECONDS)

    def _run(self) -> None:
        while (line := self._lines.get()) is not None:
            rest = f"{line}\n".encode(self._encoding, "backslashreplace")
            while rest:
                try:
                    rest = rest[os.write(self._descriptor, rest) :]
                except OSError:  # the reader has gone
                    break
