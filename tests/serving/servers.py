"""Real servers for tests: in a thread, on a free port of this machine, or as a process of its own."""

from __future__ import annotations

import itertools
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from chatglm.cli.settings import Settings
from chatglm.cli.sockets import bind, url
from chatglm.engine.request import Request
from chatglm.errors import InvalidLogitsError
from chatglm.pipeline import Pipeline
from chatglm.serving.app import create_app, create_polling_app
from chatglm.serving.polling.workers import PollingWorkers
from chatglm.serving.server import make_server
from chatglm.serving.service import RequestService
from tests import forking

ROOT = Path(__file__).parents[2]
PATIENCE_S = 60.0
# Some 200 kB of chunks.
MUCH = {"messages": [{"role": "user", "content": "hello"}], "n": 8, "max_tokens": 120, "stream": True}
HALF_HEADERS = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-"
HALF_BODY = b'POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"prompt":'
BEGINNINGS = {"silent": b"", "half of the headers": HALF_HEADERS, "half of the body": HALF_BODY}
BROKEN = "The model produced NaN or infinite logits."


def eventually(is_true: Callable[[], Any], seconds: float = PATIENCE_S) -> Any:
    """What `is_true` gives once it is something; fails when the time is over."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if result := is_true():
            return result
        time.sleep(0.02)
    raise AssertionError("it did not happen in time")


def connect(address: str, sent: bytes = b"") -> socket.socket:
    """A connection that has sent this."""
    connection = socket.create_connection(("127.0.0.1", int(address.rsplit(":", 1)[1])), PATIENCE_S)
    connection.sendall(sent)
    return connection


class Server:
    """A server in a thread, with a client and the service behind it."""

    def __init__(self, address: str, service: RequestService, workers: PollingWorkers | None = None) -> None:
        self.url = address
        self.client = httpx.Client(base_url=address, timeout=PATIENCE_S)
        self.service = service
        self.workers = workers

    def post(self, path: str, **arguments: Any) -> httpx.Response:
        return self.client.post(path, **arguments)

    def get(self, path: str, **arguments: Any) -> httpx.Response:
        return self.client.get(path, **arguments)

    def is_idle(self) -> bool:
        """Nothing runs or waits, and every slot and block is free."""
        stats = self.service.stats()
        return (stats.running, stats.waiting, stats.slots_used) == (0, 0, 0) and stats.blocks_free == stats.blocks_total


def break_after(patch: pytest.MonkeyPatch, num_steps: int, error: type[Exception] = InvalidLogitsError) -> None:
    """From then on every step of every request fails."""
    steps = itertools.count()

    accept = Request.accept

    def break_down(request: Request, token_id: int) -> None:
        if next(steps) >= num_steps:
            request.fail(error(BROKEN))
        else:
            accept(request, token_id)

    patch.setattr(Request, "accept", break_down)


@contextmanager
def serving(pipeline: Pipeline, **settings: Any) -> Iterator[Server]:
    """The server of api.py."""
    service = RequestService(pipeline, Settings(port=0, **settings))
    with _running(create_app(service), service) as server:
        yield server


@contextmanager
def polling(pipeline: Pipeline, **settings: Any) -> Iterator[Server]:
    """The server of stream_api.py."""
    service = RequestService(pipeline, Settings(port=0, **settings))
    workers = PollingWorkers(service)
    with _running(create_polling_app(service, workers), service, workers) as server:
        yield server


@contextmanager
def _running(app: Any, service: RequestService, workers: PollingWorkers | None = None) -> Iterator[Server]:
    with bind("127.0.0.1", 0) as bound:
        server = make_server(app, service, workers=workers)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        try:
            eventually(lambda: server.started)
            running = Server(url(bound), service, workers)
            with running.client:
                yield running
        finally:
            server.should_exit = True
            thread.join(PATIENCE_S)
    assert not thread.is_alive()


def open_socket(url: str, path: str, body: dict[str, Any], reads: bool = True) -> socket.socket:
    """A client that has sent a request; without `reads` it has no room for the answer."""
    client = socket.socket()
    if not reads:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    client.settimeout(PATIENCE_S)
    client.connect(("127.0.0.1", int(url.rsplit(":", 1)[1])))
    content = json.dumps(body).encode()
    head = [
        f"POST {path} HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        f"Content-Length: {len(content)}",
    ]
    client.sendall("\r\n".join([*head, "", ""]).encode() + content)
    return client


class Process:
    """`python SCRIPT` with flags, forked from a process that has imported torch."""

    def __init__(self, *command: str, environment: dict[str, str] | None = None) -> None:
        self._lines: list[str] = []
        self._process = forking.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env={**os.environ, "PYTHONIOENCODING": "utf-8", **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        self.stdout = _Reader(self._process.stdout)
        self.stderr = _Reader(self._process.stderr)

    def wait_until_listening(self) -> str:
        """Its address."""

        def address() -> str | None:
            assert self._process.poll() is None, self.stderr.text
            found = re.search(r"listening on (http://\S+)", self.stdout.text)
            return found[1] if found else None

        return str(eventually(address, 120))

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, number: int) -> None:
        self._process.send_signal(number)

    def wait(self) -> int:
        code = self._process.wait(PATIENCE_S)
        self.stdout.join()
        self.stderr.join()
        return code

    def end(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(PATIENCE_S)
        self.stdout.join()
        self.stderr.join()


class _Reader:
    """Reads a pipe to its end, so that the process never waits for us."""

    def __init__(self, pipe: Any) -> None:
        self.text = ""
        self._pipe = pipe
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def join(self) -> None:
        self._thread.join(PATIENCE_S)
        self._pipe.close()

    def _read(self) -> None:
        for line in self._pipe:
            self.text += line


@contextmanager
def process(*command: str, environment: dict[str, str] | None = None) -> Iterator[Process]:
    """A process that is gone after the block."""
    started = Process(*command, environment=environment)
    try:
        yield started
    finally:
        started.end()
