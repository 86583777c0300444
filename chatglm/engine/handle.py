"""What a caller holds of a request: the deltas as they come, in a thread or in asyncio, and the way to cancel it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator

from chatglm.engine.outbox import Outbox
from chatglm.generation.deltas import Completion, Delta, fold


class Handle:
    """One request; each `for` or `async for` starts at the first delta. Dropping it before the end cancels the request.

    The last delta's finish reason is "stop", "length", "cancelled", "deadline" or "error"; then the error is raised.
    """

    def __init__(self, outbox: Outbox, cancel: Callable[[], None], queue_place: Callable[[], int]) -> None:
        self._outbox = outbox
        self._cancel = cancel
        self._queue_place = queue_place

    def __iter__(self) -> Iterator[Delta]:
        index = 0
        while self._outbox.wait_for(index):
            yield self._outbox[index]
            index += 1

    async def __aiter__(self) -> AsyncIterator[Delta]:
        index = 0
        while await self._outbox.async_wait_for(index):
            yield self._outbox[index]
            index += 1

    @property
    def done(self) -> bool:
        return self._outbox.done

    @property
    def queue_place(self) -> int:
        """1 for the request that runs next; 0 if it runs or has ended."""
        return self._queue_place()

    def cancel(self) -> None:
        """End the request within one step of the network, unless it has ended; the last delta then says so."""
        self._cancel()

    def result(self, timeout: float | None = None) -> Completion:
        """The whole answer. Raises TimeoutError after `timeout` seconds (the request goes on), or its ChatGLMError."""
        if not self._outbox.wait_until_done(timeout):
            raise TimeoutError(f"The answer has not ended within {timeout} seconds.")
        return fold(self)

    def __del__(self) -> None:
        if not self._outbox.done:
            self._cancel()
