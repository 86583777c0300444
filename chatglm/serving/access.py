"""Who may come in: the API key.

Knows: the header and which paths are open to everybody. Does not know what is behind the door.
"""

from __future__ import annotations

import hmac

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from chatglm.serving.errors import WrongKeyError
from chatglm.serving.refusals import respond

# The documentation holds no secret and a browser cannot be told to send a key for it.
OPEN_PATHS = ("/health", "/docs", "/redoc", "/openapi.json", "/static-offline-docs/")


def check_key(key: str, authorization: str | None) -> None:
    """Compare a header with the key, in a time that does not tell how much of it was right.

    Raises:
        WrongKeyError: it is not `Bearer KEY`.
    """
    scheme, _, given = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), key.encode()):
        raise WrongKeyError("The API key is missing or wrong.", "Send Authorization: Bearer KEY.")


def is_open(path: str) -> bool:
    """Whether a path needs no key."""
    return any(path == each or (each.endswith("/") and path.startswith(each)) for each in OPEN_PATHS)


class RequireKey:
    """ASGI middleware: 401 without the key.

    Args:
        app: the application behind.
        key: what clients must send.
    """

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app = app
        self._key = key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not is_open(scope["path"]):
            try:
                check_key(self._key, Headers(scope=scope).get("authorization"))
            except WrongKeyError as error:
                await respond(error, scope["path"])(scope, receive, send)
                return
        await self._app(scope, receive, send)
