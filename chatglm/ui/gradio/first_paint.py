"""Puts the page's style and the remembered theme into the HTML that Gradio serves, so that nothing flashes or jumps."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from chatglm.ui.gradio.icons import icon_style
from chatglm.ui.markdown import STYLE

Message = MutableMapping[str, Any]
_PAGE_STYLE = (Path(__file__).parent / "page" / "page.css").read_text(encoding="utf-8")
_SCRIPT = """
document.documentElement.lang = navigator.language.toLowerCase().startsWith("zh") ? "zh-CN" : "en";
try { document.documentElement.style.colorScheme = JSON.parse(localStorage.getItem("chatglm:theme")) || ""; } catch {}
"""
_HEAD = f"<head><script>{_SCRIPT}</script><style>#page {{ {STYLE}{icon_style()} }}\n{_PAGE_STYLE}</style>".encode()


class FirstPaint:
    """ASGI middleware; everything but the page itself passes as it is."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Any, send: Callable[[Message], Awaitable[None]]) -> None:
        if scope["type"] != "http" or scope["path"] != "/":
            await self._app(scope, receive, send)
            return
        start: Message = {}

        async def send_changed(message: Message) -> None:
            if message["type"] == "http.response.start":
                start.update(message)
                return
            if start:
                message = {**message, "body": message["body"].replace(b"<head>", _HEAD, 1)}
                headers = [(name, value) for name, value in start["headers"] if name != b"content-length"]
                if not message.get("more_body"):
                    headers.append((b"content-length", str(len(message["body"])).encode()))
                await send({**start, "headers": headers})
                start.clear()
            await send(message)

        await self._app(scope, receive, send_changed)
