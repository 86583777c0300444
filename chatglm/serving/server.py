"""The FastAPI application on uvicorn, and its shutdown.

SIGTERM -> no new requests (503; the port is closed) -> answers go on for `shutdown_timeout` seconds
        -> those left are cancelled, their clients told -> connections close -> exit 0
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import ExitStack

import uvicorn

from chatglm.cli.signals import record_stop_signals
from chatglm.serving.app import create_app
from chatglm.serving.commands import StartedServer
from chatglm.serving.request_log import LinePrinter
from chatglm.serving.service import RequestService

# How long the server waits for clients that do not read the end of their answer.
CLOSING_SECONDS = 3


class DrainingServer(uvicorn.Server):
    """A uvicorn server that drains its service at shutdown; `on_listening` returns False to end it at once."""

    def __init__(self, config: uvicorn.Config, service: RequestService, on_listening: Callable[[], bool]) -> None:
        super().__init__(config)
        self._service = service
        self._on_listening = on_listening

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if not self._on_listening():
            self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._service.close()
        timeout = self._service.settings.shutdown_timeout
        cancelling = asyncio.get_running_loop().call_later(timeout, self._service.cancel_all)
        try:
            await super().shutdown(sockets)
        finally:
            cancelling.cancel()


def make_server(
    app: object, service: RequestService, on_listening: Callable[[], bool] = lambda: True
) -> DrainingServer:
    """A uvicorn server that neither logs requests nor sends a Server header."""
    config = uvicorn.Config(
        app,  # type: ignore[arg-type]
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(service.settings.shutdown_timeout) + CLOSING_SECONDS,
    )
    return DrainingServer(config, service, on_listening)


def run(start: StartedServer) -> int:
    """Serve until a signal comes; returns the exit code."""
    service = RequestService(start.pipeline, start.settings)
    with ExitStack() as stack:
        print_line = stack.enter_context(LinePrinter()).print if start.settings.logs_requests else lambda line: None
        signals = stack.enter_context(record_stop_signals())  # uvicorn passes its own on to these when it has ended

        def on_listening() -> bool:
            start.announce("  (docs: /docs, OpenAI: /v1)")
            return signals.count == 0  # one may have come before uvicorn handled signals

        make_server(create_app(service, print_line), service, on_listening).run(sockets=[start.bound])
        return signals.exit_code
