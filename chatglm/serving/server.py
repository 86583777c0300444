"""The FastAPI application on uvicorn, and its shutdown.

SIGTERM -> no new requests (503) -> answers go on for `shutdown_timeout` seconds; api.py has closed the port by then,
        stream_api.py is still polled -> those left are cancelled, their clients told -> connections close -> exit 0
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import ExitStack

import uvicorn

from chatglm.cli.signals import record_stop_signals
from chatglm.serving.app import create_app, create_polling_app
from chatglm.serving.commands import StartedServer
from chatglm.serving.connections import connection_bounds, connection_class
from chatglm.serving.polling.workers import PollingWorkers
from chatglm.serving.request_log import LinePrinter
from chatglm.serving.service import RequestService

# How long the server waits for clients that do not read the end of their answer.
CLOSING_SECONDS = 3
# Longer than clients keep an idle connection (httpx: 5 seconds), or both might use and close it at the same moment.
KEEP_ALIVE_SECONDS = 30


class DrainingServer(uvicorn.Server):
    """A uvicorn server that drains its service at shutdown.

    `on_listening` returns False to end it at once. `workers` are those of the polling API.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        service: RequestService,
        on_listening: Callable[[], bool],
        workers: PollingWorkers | None = None,
    ) -> None:
        super().__init__(config)
        self._service = service
        self._on_listening = on_listening
        self._workers = workers

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if not self._on_listening():
            self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._service.close()
        timeout = self._service.settings.shutdown_timeout
        if self._workers is not None:
            await asyncio.to_thread(self._workers.drain, timeout, lambda: self.force_exit)
        cancelling = asyncio.get_running_loop().call_later(timeout, self._service.cancel_all)
        try:
            await super().shutdown(sockets)
        finally:
            cancelling.cancel()
        if self.force_exit:
            await self._end_all()

    async def _end_all(self) -> None:
        """Ctrl+C was pressed again: nobody is waited for, but every request ends in order."""
        self._service.cancel_all()
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        if tasks := list(self.server_state.tasks):
            await asyncio.wait(tasks, timeout=CLOSING_SECONDS)


def make_server(
    app: object,
    service: RequestService,
    on_listening: Callable[[], bool] = lambda: True,
    workers: PollingWorkers | None = None,
) -> DrainingServer:
    """A uvicorn server that neither logs requests nor sends a Server header."""
    settings = service.settings
    max_connections, backlog = connection_bounds(settings.max_connections)
    config = uvicorn.Config(
        app,  # type: ignore[arg-type]
        http=connection_class(max_connections, settings.header_timeout),
        ws="none",
        lifespan="off",
        backlog=backlog,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(settings.shutdown_timeout) + CLOSING_SECONDS,
    )
    return DrainingServer(config, service, on_listening, workers)


def run(start: StartedServer) -> int:
    """Serve api.py until a signal comes; returns the exit code."""
    service = RequestService(start.pipeline, start.settings)
    with ExitStack() as stack:
        print_line = stack.enter_context(LinePrinter()).print if start.settings.logs_requests else lambda line: None
        return _serve(start, create_app(service, print_line), service, "  (docs: /docs, OpenAI: /v1)")


def run_polling(start: StartedServer) -> int:
    """Serve stream_api.py until a signal comes; returns the exit code."""
    service = RequestService(start.pipeline, start.settings)
    workers = PollingWorkers(service)
    return _serve(start, create_polling_app(service, workers), service, "  (docs: /docs)", workers)


def _serve(
    start: StartedServer, app: object, service: RequestService, details: str, workers: PollingWorkers | None = None
) -> int:
    with record_stop_signals() as signals:  # uvicorn passes its own on to these when it has ended

        def on_listening() -> bool:
            start.announce(details)
            return signals.count == 0  # one may have come before uvicorn handled signals

        make_server(app, service, on_listening, workers).run(sockets=[start.bound])
        return signals.exit_code
