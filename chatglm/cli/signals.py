"""What Ctrl+C and SIGTERM do while a program loads, answers or serves."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

INTERRUPTED = 130  # the exit code of shells for a program that Ctrl+C ended
_POLL_S = 0.1


@contextmanager
def on_interrupt(action: Callable[[], None]) -> Iterator[None]:
    """Run `action` at Ctrl+C inside the block. A program started to ignore Ctrl+C (nohup, `&`) goes on doing so."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        yield
        return
    previous = signal.signal(signal.SIGINT, lambda number, frame: action())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous or signal.default_int_handler)


@contextmanager
def exit_on_interrupt(message: str, clean_up: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Inside the block Ctrl+C prints `message` and ends the process at once, after `clean_up`.

    It raises no exception: imports would swallow or reword one, and a download would first wait for its threads.
    """

    def leave() -> None:
        clean_up()
        # Past Python's buffers: the interrupted code may be in the middle of writing to them.
        os.write(2, f"\n{message}\n".encode(sys.stderr.encoding or "utf-8", "replace"))
        os._exit(INTERRUPTED)

    with on_interrupt(leave):
        yield


@contextmanager
def cancel_on_interrupt() -> Iterator[threading.Event]:
    """Inside the block the first Ctrl+C sets the event; the next one does not wait and raises KeyboardInterrupt."""
    cancel = threading.Event()

    def press() -> None:
        if cancel.is_set():
            raise KeyboardInterrupt
        cancel.set()

    with on_interrupt(press):
        yield cancel


@contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Inside the block SIGTERM ends the process: no request is being served yet."""
    previous = signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


class StopSignals:
    """SIGTERM and SIGINT received so far."""

    def __init__(self) -> None:
        self._numbers: list[int] = []

    def record(self, number: int, frame: object) -> None:
        """The handler. It takes no lock, because it interrupts code that may hold it."""
        self._numbers.append(number)

    def wait(self) -> None:
        """Sleep until one comes."""
        while not self._numbers:
            time.sleep(_POLL_S)

    @property
    def count(self) -> int:
        """How many have come."""
        return len(self._numbers)

    @property
    def exit_code(self) -> int:
        """0 after SIGTERM, as a service manager expects; 130 after Ctrl+C, as a shell does."""
        return INTERRUPTED if signal.SIGINT in self._numbers else 0


@contextmanager
def record_stop_signals() -> Iterator[StopSignals]:
    """Inside the block both signals are only recorded. After one of them Ctrl+C is ignored: the process ends anyway."""
    signals = StopSignals()
    previous = {number: signal.signal(number, signals.record) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield signals
    finally:
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_IGN if signals.count and number == signal.SIGINT else handler)
