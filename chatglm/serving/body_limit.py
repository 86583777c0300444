"""ASGI middleware: no body is longer than the server's limit.

Knows: bytes as they arrive. Does not know what is in them.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chatglm.serving.errors import BodyTooLargeError
from chatglm.serving.refusals import respond

# What is thrown away of a body that is too long, so that its sender is ready to read the answer.
_PATIENCE = 8


class BodyLimit:
    """Answers 413 for longer bodies, whether or not their length is announced.

    Args:
        app: the application behind.
        limit: bytes.
    """

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = await self._read(receive)
        if body is None:
            error = BodyTooLargeError(f"The body is longer than {self._limit // 1024**2} MB.")
            await respond(error, scope["path"])(scope, receive, send)
            return
        await self._app(scope, _replay(body, receive), send)

    async def _read(self, receive: Receive) -> bytes | None:
        """The whole body; None if it is too long. A client that leaves has sent what it has sent."""
        chunks: list[bytes] = []
        num_bytes = 0
        while num_bytes <= self._limit * _PATIENCE:
            message = await receive()
            if message["type"] != "http.request":
                break
            num_bytes += len(message.get("body", b""))
            if num_bytes <= self._limit:
                chunks.append(message.get("body", b""))
            if not message.get("more_body", False):
                break
        return b"".join(chunks) if num_bytes <= self._limit else None


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body in one piece, then what comes after it."""
    is_read = False

    async def replay() -> Message:
        nonlocal is_read
        if is_read:
            return await receive()
        is_read = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
