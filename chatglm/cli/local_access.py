"""Keeps web pages of other sites away from a server on this machine, as ASGI middleware for servers and pages.

A browser lets any page send simple requests to 127.0.0.1, and a name that its owner points at 127.0.0.1 (DNS rebinding)
even lets that page read the responses. Both show in headers: Host holds the foreign name, Origin the foreign page.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

from chatglm.cli.sockets import is_loopback

ASGIApp = Callable[[Any, Any, Any], Awaitable[None]]


class LocalAccess:
    """Refuses (403) Host names other than localhost and `hosts`, and pages of other origins than `origins`.

    `"*"` among the hosts switches it off; among the origins it allows pages of every origin.
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str] = (), origins: Sequence[str] = ()) -> None:
        self._app = app
        self._hosts = frozenset(hosts)
        self._origins = frozenset(origins)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] in ("http", "websocket") and "*" not in self._hosts and (reason := self._refusal(scope)):
            await _refuse(scope, send, reason)
        else:
            await self._app(scope, receive, send)

    def _refusal(self, scope: Any) -> str:
        headers = {name: value.decode("latin-1") for name, value in reversed(scope["headers"])}  # the first of a name
        host, origin = headers.get(b"host", "localhost"), headers.get(b"origin")
        if not is_loopback(_name(host)) and _name(host) not in self._hosts:
            remedy = f"Start it with --allowed-hosts {_name(host)[:100]}."
            return f"This server answers to localhost, not to {host[:100]!r}. {remedy}"
        if "*" in self._origins or origin in self._origins or _is_visit(scope, headers):
            return ""
        if (origin is not None and not _is_same(origin, host)) or headers.get(b"sec-fetch-site") == "cross-site":
            page = origin or "another site"
            return f"Pages of {page[:100]} may not use this server. Start it with --cors to allow them."
        return ""


def _is_visit(scope: Any, headers: dict[bytes, str]) -> bool:
    """Somebody follows a link to this server: the page that has it sees nothing of the response."""
    return scope.get("method") == "GET" and headers.get(b"sec-fetch-mode") == "navigate" and b"origin" not in headers


def _name(host: str) -> str:
    """The name in a Host header, without its port and without the brackets of an IPv6 address; "" for none."""
    try:
        return urlsplit(f"//{host}").hostname or "" if "@" not in host and "/" not in host else ""
    except ValueError:  # half of a pair of brackets
        return ""


def _is_same(origin: str, host: str) -> bool:
    try:
        return urlsplit(origin).netloc == host
    except ValueError:
        return False


async def _refuse(scope: Any, send: Any, reason: str) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": reason[:100]})
        return
    body = json.dumps({"detail": reason, "error": {"message": reason, "type": "permission_error"}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 403, "headers": headers})
    await send({"type": "http.response.body", "body": body})
