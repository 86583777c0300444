"""What the page never sends is refused before Gradio reads it: files, and bodies larger than browsers keep."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.responses import PlainTextResponse

from chatglm.ui.gradio.gradio_page import MAX_CHARACTERS

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

MAX_BYTES = 4 * MAX_CHARACTERS  # of UTF-8


class PageRequests:
    """ASGI middleware: 403 for an upload, 413 for a long body, 411 for one of unknown length."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = _refusal(scope) if scope["type"] == "http" else None
        await (app or self._app)(scope, receive, send)


def _refusal(scope: Scope) -> ASGIApp | None:
    headers: dict[bytes, bytes] = dict(scope["headers"])
    if scope["path"].rstrip("/").endswith("/upload"):
        return _text("This page takes no files.", 403)
    if b"transfer-encoding" in headers:
        return _text("Send the body with its Content-Length.", 411)
    length = headers.get(b"content-length", b"0")
    if not length.isdigit() or int(length[:20]) > MAX_BYTES:
        return _text(f"The body is longer than {MAX_BYTES // 1_000_000} MB.", 413)
    return None


def _text(message: str, status: int) -> Any:
    return PlainTextResponse(message, status, headers={"connection": "close"})
