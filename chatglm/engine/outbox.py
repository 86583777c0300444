"""The deltas of one answer, from the engine's thread, which never waits, to any number of threads and event loops."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable
from contextlib import suppress

from chatglm.generation.deltas import Delta

Sleeper = tuple[asyncio.AbstractEventLoop, asyncio.Event]


class Outbox:
    """One side puts deltas, the last of them with a finish reason; the other reads them by number, from 0 on."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._deltas: list[Delta] = []
        self._error: BaseException | None = None
        self._sleepers: list[Sleeper] = []

    def put(self, deltas: Iterable[Delta], error: BaseException | None = None) -> None:
        """Append deltas; `error` is raised to whoever reads beyond the last one."""
        with self._changed:
            assert not self.done, "an answer ends once"
            self._error = error
            self._deltas.extend(deltas)
            sleepers, self._sleepers = self._sleepers, []
            self._changed.notify_all()
        for loop, event in sleepers:
            _wake(loop, event)

    @property
    def done(self) -> bool:
        return bool(self._deltas) and self._deltas[-1].finish_reason is not None

    def __getitem__(self, index: int) -> Delta:
        return self._deltas[index]

    def __len__(self) -> int:
        return len(self._deltas)

    def wait_for(self, index: int) -> bool:
        """Sleep until delta number `index` is there; False if the answer ends before it, or the error it ended with."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_settled(index))
        return self._has(index)

    async def async_wait_for(self, index: int) -> bool:
        sleeper = (asyncio.get_running_loop(), asyncio.Event())
        with self._changed:
            if self._is_settled(index):
                return self._has(index)
            self._sleepers.append(sleeper)
        try:
            await sleeper[1].wait()
        finally:
            with self._changed:
                if sleeper in self._sleepers:
                    self._sleepers.remove(sleeper)
        return self._has(index)

    def wait_until_done(self, timeout: float | None) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self.done, timeout)

    def _is_settled(self, index: int) -> bool:
        return index < len(self._deltas) or self.done

    def _has(self, index: int) -> bool:
        if index < len(self._deltas):
            return True
        if self._error is not None:
            raise self._error
        return False


def _wake(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    with suppress(RuntimeError):  # the loop has closed, and its reader with it
        loop.call_soon_threadsafe(event.set)
