"""What a caller holds of a request: the deltas as they come, in a thread or in asyncio, and the way to cancel it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator

from chatglm.engine.outbox import Outbox
from chatglm.generation.deltas import Completion, Delta, fold


class Handle:
    """One request. Iterate it with `for` or `async for`, as often as needed: each time from the first delta.

    The last delta has a finish reason: "stop", "length", "cancelled", "deadline", or "error", after which the error
    itself is raised. A request whose handle is dropped before that is cancelled.
    """

    def __init__(self, outbox: Outbox, cancel: Callable[[], None]) -> None:
        self._outbox = outbox
        self._cancel = cancel

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
        """Whether the answer has ended, for whatever reason."""
        return self._outbox.done

    def cancel(self) -> None:
        """End the request within one step of the network, unless it has ended; the last delta then says so."""
        self._cancel()

    def result(self, timeout: float | None = None) -> Completion:
        """The whole answer, once it has ended.

        Args:
            timeout: seconds to wait; None = as long as it takes. The request goes on when they are over.

        Raises:
            TimeoutError: they are over.
            ChatGLMError: the request failed.
        """
        if not self._outbox.wait_until_done(timeout):
            raise TimeoutError(f"The answer has not ended within {timeout} seconds.")
        return fold(self)

    def __del__(self) -> None:
        if not self._outbox.done:
            self._cancel()
