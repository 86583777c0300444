"""The FastAPI application on uvicorn, and how it comes to its end.

Knows: uvicorn, signals, the bound of a shutdown. Does not know routes.

    SIGTERM -> nothing more is taken (503; the port is closed) -> answers go on for `shutdown_timeout` seconds
            -> those left are cancelled, their clients told -> connections close -> exit 0
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import ExitStack

import uvicorn

from chatglm.cli.signals import record_stop_signals
from chatglm.serving.application import create_app
from chatglm.serving.commands import StartedServer
from chatglm.serving.desk import RequestService
from chatglm.serving.request_log import Printer

# A client that does not read the end of its answer is not waited for any longer.
CLOSING_SECONDS = 3


class DrainingServer(uvicorn.Server):
    """A uvicorn server that brings its desk to an end first.

    Args:
        config: uvicorn's.
        desk: where its requests are.
        on_listening: called once clients can connect; False ends the server at once.
    """

    def __init__(self, config: uvicorn.Config, desk: RequestService, on_listening: Callable[[], bool]) -> None:
        super().__init__(config)
        self._desk = desk
        self._on_listening = on_listening

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's own: opens the port."""
        await super().startup(sockets)
        if not self._on_listening():
            self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's own: closes the port, then waits for connections."""
        self._desk.close()
        timeout = self._desk.settings.shutdown_timeout
        cancelling = asyncio.get_running_loop().call_later(timeout, self._desk.cancel_all)
        try:
            await super().shutdown(sockets)
        finally:
            cancelling.cancel()


def make_server(app: object, desk: RequestService, on_listening: Callable[[], bool] = lambda: True) -> DrainingServer:
    """A server for an application; it neither logs requests nor says what it is."""
    config = uvicorn.Config(
        app,  # type: ignore[arg-type]
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(desk.settings.shutdown_timeout) + CLOSING_SECONDS,
    )
    return DrainingServer(config, desk, on_listening)


def run(start: StartedServer) -> int:
    """Serve until a signal comes; returns the exit code."""
    desk = RequestService(start.pipeline, start.settings)
    with ExitStack() as stack:
        print_line = stack.enter_context(Printer()).print if start.settings.logs_requests else lambda line: None
        signals = stack.enter_context(record_stop_signals())  # uvicorn gives them back to us when it has ended

        def on_listening() -> bool:
            start.announce("  (docs: /docs, OpenAI: /v1)")
            return signals.count == 0  # one may have come before uvicorn listened to them

        make_server(create_app(desk, print_line), desk, on_listening).run(sockets=[start.bound])
        return signals.exit_code
