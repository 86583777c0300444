"""A client that leaves while its answer is being made: the answer is cancelled.

Knows: ASGI's disconnect message. Does not know answers, beyond that they can be cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from fastapi import Request


@asynccontextmanager
async def on_disconnect(request: Request, action: Callable[[], None]) -> AsyncIterator[None]:
    """Inside the block, call `action` the moment the client has gone. The body must have been read."""
    watcher = asyncio.create_task(_watch(request, action))
    try:
        yield
    finally:
        watcher.cancel()
        with suppress(asyncio.CancelledError):
            await watcher


async def _watch(request: Request, action: Callable[[], None]) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    action()
