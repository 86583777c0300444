"""ASGI middleware: every HTTP answer is counted by path and status.

Knows: ASGI messages. Does not know what is counted for.
"""

from __future__ import annotations

from prometheus_client import Counter
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class CountRequests:
    """Counts when an answer begins.

    Args:
        app: the application behind.
        counter: with the labels path and status.
        paths: those counted by name; all others are "other", or strangers could fill the memory with made-up paths.
    """

    def __init__(self, app: ASGIApp, counter: Counter, paths: frozenset[str]) -> None:
        self._app = app
        self._counter = counter
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in self._paths else "other"

        async def count(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._counter.labels(path, str(message["status"])).inc()
            await send(message)

        await self._app(scope, receive, count)
