"""A progress bar for the weights, shown to a person only, and only when they have to wait.

Knows: bytes and a stream. Does not know what is loaded.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TextIO

PATIENCE_S = 0.5
REDRAW_S = 0.1
BAR_WIDTH = 24
ERASE = "\r" + " " * 70 + "\r"  # spaces, since not every console knows the escape codes


class LoadingBar:
    """Call it with (bytes read, bytes in all); it erases itself at the end of a `with` block.

    Args:
        stream: where to draw; nothing is drawn where it is no terminal.
        clock: seconds.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock = stream, clock
        self._is_wanted = stream.isatty()
        self._next_draw = 0.0
        self._is_started = self._is_drawn = False

    def __call__(self, num_read: int, num_all: int) -> None:
        now = self._clock()
        if not self._is_started:
            self._is_started, self._next_draw = True, now + PATIENCE_S
        if self._is_wanted and now >= self._next_draw:
            self._next_draw = now + REDRAW_S
            self._is_drawn = True
            self._write("\r" + picture(num_read, num_all))

    def __enter__(self) -> LoadingBar:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._is_drawn:
            self._write(ERASE)

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


def picture(num_read: int, num_all: int) -> str:
    """One line, plain ASCII but for two Chinese words, always of the same width for the same `num_all`."""
    share = num_read / num_all if num_all else 1.0
    bar = ("#" * int(share * BAR_WIDTH)).ljust(BAR_WIDTH, ".")
    unit, size = ("GB", 1e9) if num_all >= 1e9 else ("MB", 1e6)
    whole = f"{num_all / size:.1f}"
    return f"加载 Loading [{bar}] {share:4.0%} {num_read / size:{len(whole)}.1f} / {whole} {unit}"
