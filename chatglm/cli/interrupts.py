"""What Ctrl+C does at each time: leave while loading, stop the answer while answering.

Knows: the SIGINT handler and that the main thread runs it between two steps of Python.
Does not know what is loaded or answered. At all other times Python's own KeyboardInterrupt is what comes.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

INTERRUPTED = 130  # the exit code of shells for a program that Ctrl+C ended


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
def leaving(sentence: str) -> Iterator[None]:
    """Inside the block Ctrl+C prints `sentence` and ends the process at once.

    No exception is raised for it: half of the time would be spent in imports, which swallow or reword one and print
    tracebacks of their own, and a download would first wait for its threads. Nothing here needs tidying up.
    """

    def leave() -> None:
        # Past Python's buffers: the interrupted code may be in the middle of writing to them.
        os.write(2, f"\n{sentence}\n".encode(sys.stderr.encoding or "utf-8", "replace"))
        os._exit(INTERRUPTED)

    with on_interrupt(leave):
        yield


@contextmanager
def cancelling() -> Iterator[threading.Event]:
    """Inside the block the first Ctrl+C sets the event; the next one does not wait and raises KeyboardInterrupt."""
    cancel = threading.Event()

    def press() -> None:
        if cancel.is_set():
            raise KeyboardInterrupt
        cancel.set()

    with on_interrupt(press):
        yield cancel
