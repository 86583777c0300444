"""Progress callbacks, and a bar that is drawn on terminals when the wait is long enough."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TextIO

# Called with (done, total), in bytes or whatever else is counted.
Progress = Callable[[int, int], None]

PATIENCE_S = 0.5


class ProgressBar:
    """A `Progress`, drawn after `patience_s` seconds if `stream` is a terminal; erased when done or after `with`."""

    def __init__(
        self, stream: TextIO, patience_s: float = PATIENCE_S, *, title: str = "加载 Loading", unit: str = "B"
    ) -> None:
        self._stream, self._patience_s, self._title, self._unit = stream, patience_s, title, unit
        self._bar: Any = None

    def __call__(self, num_read: int, num_all: int) -> None:
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(
                desc=self._title,
                total=num_all,
                unit=self._unit,
                unit_scale=self._unit == "B",
                delay=self._patience_s,
                leave=False,
                disable=not self._stream.isatty(),
                file=self._stream,
            )
        self._bar.update(num_read - self._bar.n)
        if num_read >= num_all:
            self._bar.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
