"""A thread that reads items in a cycle, ahead of their use."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from chatglm.errors import ChatGLMError


class ReadAhead:
    """Reads items 0, 1, ..., n - 1, 0, ... with read(item, slot) in a thread, as slots become free, until `close`.

    One item is taken at a time; other threads wait. Another order works, but drops what was read ahead.
    """

    def __init__(self, read: Callable[[int, int], None], num_items: int, num_slots: int) -> None:
        self._read, self._num_items = read, num_items
        self._turn = threading.Lock()
        self._changed = threading.Condition()
        # All below only while `_changed` is held.
        self._free = list(range(num_slots))
        self._ready: dict[int, int] = {}  # item -> its slot
        self._in_use: int | None = None
        self._next = 0
        self._reading: int | None = None
        self._error: Exception | None = None
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="chatglm-read-ahead", daemon=True)
        self._thread.start()

    @contextmanager
    def taken(self, item: int) -> Iterator[int]:
        """The slot that holds `item` while the block runs; raises what reading raised, ChatGLMError after `close`."""
        with self._turn:
            try:
                yield self._wait_for(item)
            finally:
                self._release()

    def close(self) -> None:
        """End the thread, after the read that it is in; may be called more than once."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _wait_for(self, item: int) -> int:
        with self._changed:
            while True:
                if self._is_closed:
                    raise ChatGLMError("This model is closed.", "Load it again.")
                if self._error is not None:
                    error, self._error = self._error, None
                    self._changed.notify_all()
                    raise error
                if item in self._ready:
                    self._in_use = self._ready.pop(item)
                    return self._in_use
                if self._ready or item not in (self._reading, self._next):
                    self._go_back_to(item)
                self._changed.wait()

    def _go_back_to(self, item: int) -> None:
        self._free += self._ready.values()
        self._ready.clear()
        self._next = item
        self._reading = None
        self._changed.notify_all()

    def _release(self) -> None:
        with self._changed:
            if self._in_use is not None:
                self._free.append(self._in_use)
                self._in_use = None
            self._changed.notify_all()

    def _run(self) -> None:
        while (job := self._next_job()) is not None:
            item, slot = job
            error = None
            try:
                self._read(item, slot)
            except Exception as caught:  # whoever takes an item next gets it
                error = caught
            self._finish(item, slot, error)

    def _next_job(self) -> tuple[int, int] | None:
        """Wait for a free slot; what to read into it, or None at the end."""
        with self._changed:
            while not self._is_closed and (self._error is not None or not self._free):
                self._changed.wait()
            if self._is_closed:
                return None
            self._reading, self._next = self._next, (self._next + 1) % self._num_items
            return self._reading, self._free.pop()

    def _finish(self, item: int, slot: int, error: Exception | None) -> None:
        with self._changed:
            is_wanted = self._reading == item  # not dropped in the meantime
            self._reading = None
            if is_wanted and error is None:
                self._ready[item] = slot
            else:
                self._free.append(slot)
                self._error = error if is_wanted else self._error
            self._changed.notify_all()
