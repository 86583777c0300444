"""What SIGTERM and Ctrl+C do to a server.

Knows: signal handlers. Does not know what is served, or how it is brought to an end.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

from chatglm.cli.interrupts import INTERRUPTED

_LOOK_EVERY_S = 0.1


class EndSignals:
    """Those that have come since the server began to listen."""

    def __init__(self) -> None:
        self._numbers: list[int] = []

    def note(self, number: int, frame: object) -> None:
        """The handler. It takes no lock, because it interrupts code that may hold it."""
        self._numbers.append(number)

    def wait(self) -> None:
        """Sleep until one comes."""
        while not self._numbers:
            time.sleep(_LOOK_EVERY_S)

    @property
    def count(self) -> int:
        """How many have come."""
        return len(self._numbers)

    @property
    def exit_code(self) -> int:
        """0 after SIGTERM, as a service manager expects; 130 after Ctrl+C, as a shell does."""
        return INTERRUPTED if signal.SIGINT in self._numbers else 0


@contextmanager
def noting_signals() -> Iterator[EndSignals]:
    """Inside the block both signals are only noted."""
    signals = EndSignals()
    previous = {number: signal.signal(number, signals.note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield signals
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def ending_at_once() -> Iterator[None]:
    """Inside the block SIGTERM ends the process: nothing is being served that would have to be finished."""
    previous = signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
