"""Progress callbacks, and what people see of a long wait: a bar on a terminal, now and then a line in a log."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self, TextIO

from chatglm.cells import cell_width, cut
from chatglm.sizes import format_bytes

# Called with (done, total), in bytes or whatever else is counted; with (0, total) at the start if that takes a while.
Progress = Callable[[int, int], None]

PATIENCE_S = 0.5
REDRAW_S = 0.1
LOG_S = 10.0
MAX_BAR_CELLS = 40


class ProgressBar:
    """A `Progress`: after `PATIENCE_S` a bar that is erased at the end, or a line every `LOG_S` without a terminal."""

    def __init__(
        self,
        stream: TextIO,
        *,
        title: str = "加载 Loading",
        unit: str = "B",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream, self._title, self._unit, self._clock = stream, title, unit, clock
        self._is_watched = stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
        self._started: float | None = None
        self._due, self._num_before, self._num_cells = 0.0, 0, 0

    def __call__(self, num_done: int, num_all: int) -> None:
        now = self._clock()
        if self._started is None:
            self._started, self._num_before = now, num_done
            self._due = now + (PATIENCE_S if self._is_watched else LOG_S)
        if num_done >= num_all:
            self._erase()
        elif now >= self._due:
            self._due = now + (REDRAW_S if self._is_watched else LOG_S)
            self._show(num_done, num_all, (num_done - self._num_before) / max(now - self._started, 1e-9))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._erase()

    def _show(self, num_done: int, num_all: int, per_second: float) -> None:
        share = num_done / num_all
        figures = f"{share:4.0%} · {self._amount(num_done)} / {self._amount(num_all)}"
        if per_second:
            figures += f" · {self._amount(per_second)}/s · 剩余 {_duration((num_all - num_done) / per_second)} left"
        if not self._is_watched:
            print(f"{self._title} {figures}", file=self._stream, flush=True)
            return
        num_free = shutil.get_terminal_size().columns - 1
        num_cells = max(0, min(MAX_BAR_CELLS, num_free - cell_width(f"{self._title}  {figures}")))
        num_full = round(num_cells * share)
        line = cut(f"{self._title} {'█' * num_full}{'░' * (num_cells - num_full)} {figures}", num_free)
        self._write(f"\r{line}{' ' * (self._num_cells - cell_width(line))}")
        self._num_cells = cell_width(line)

    def _erase(self) -> None:
        if self._num_cells:
            self._write(f"\r{' ' * self._num_cells}\r")
            self._num_cells = 0

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()

    def _amount(self, number: float) -> str:
        return format_bytes(int(number)) if self._unit == "B" else f"{number:.1f}".removesuffix(".0") + self._unit


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
