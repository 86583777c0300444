"""Connections that send nothing, half of a request, or too much; those that only finished sending; foreign pages."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import time
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from chatglm.errors import ChatGLMError
from chatglm.pipeline import Pipeline
from chatglm.serving.connections import SPARE_FILES, allowed_connections
from chatglm.serving.schemas import MAX_JSON_PARTS, parse_json
from tests.serving.servers import PATIENCE_S, Server, eventually, open_socket, polling, process, serving
from tests.serving.test_processes import QUIET
from tests.serving.test_processes import tiny as tiny

HALF_HEADERS = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-"
HALF_BODY = b'POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"prompt":'
BEGINNINGS = {"silent": b"", "half of the headers": HALF_HEADERS, "half of the body": HALF_BODY}


def connect(server: Server | str, sent: bytes = b"") -> socket.socket:
    address = server if isinstance(server, str) else server.url
    connection = socket.create_connection(("127.0.0.1", int(address.rsplit(":", 1)[1])), PATIENCE_S)
    connection.sendall(sent)
    return connection


def read_to_end(connection: socket.socket) -> bytes:
    """What comes until the other end closes the connection."""
    received = b""
    with connection, suppress(ConnectionResetError):
        while chunk := connection.recv(65536):
            received += chunk
    return received


@pytest.mark.parametrize("start", [serving, polling])
def test_unfinished_requests_are_ended(demo: Pipeline, start: Callable[..., Server]) -> None:
    with start(demo, header_timeout=0.3, body_timeout=0.3) as server:  # type: ignore[attr-defined]
        ends = {name: read_to_end(connect(server, sent)) for name, sent in BEGINNINGS.items()}
        assert [ends[name] for name in ("silent", "half of the headers")] == [b"", b""]
        if start is serving:
            assert b" 408 " in ends["half of the body"].splitlines()[0]
            assert b"did not arrive within 0.3 seconds" in ends["half of the body"]
        connection = connect(server, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        connection.sendall(HALF_HEADERS)  # the second request of a connection is no exception
        received = read_to_end(connection)
        assert b"200 OK" in received
        assert received.count(b"HTTP/1.1") == 1


def test_more_connections_than_allowed_are_turned_away(demo: Pipeline) -> None:
    with serving(demo, max_connections=3) as server:
        silent = [connect(server) for _ in range(3)]
        assert read_to_end(connect(server)).startswith(b"HTTP/1.1 503 ")
        for each in silent:
            each.close()
        assert eventually(lambda: server.get("/health").status_code == 200)


def test_there_are_files_left_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    for limit, expected in ((resource.RLIM_INFINITY, 1000), (300, 300 - SPARE_FILES), (10, 1), (65536, 1000)):
        monkeypatch.setattr(resource, "getrlimit", lambda which, limit=limit: (limit, limit))
        assert allowed_connections(1000) == expected


def test_sigterm_does_not_wait_for_unfinished_requests() -> None:
    for script in ("api.py", "stream_api.py"):
        with process(script, environment=QUIET) as api:
            url = api.wait_until_listening()
            left = [connect(url, sent) for sent in BEGINNINGS.values()]
            assert httpx.get(f"{url}/health", timeout=PATIENCE_S).status_code == 200  # they have arrived by now
            start = time.monotonic()
            api.send(signal.SIGTERM)
            assert api.wait() == 0
            assert time.monotonic() - start < 10  # a promise to service managers
            assert "Traceback" not in api.stderr.text
            for each in left:
                each.close()


def test_ctrl_c_again_and_again(tiny: Path) -> None:
    with process("api.py", "--model", str(tiny), "--shutdown-timeout", "60", environment=QUIET) as api:
        url = api.wait_until_listening()
        busy = open_socket(url, "/stream", {"prompt": "hello", "seed": 1})
        busy.recv(1)
        for _ in range(3):
            api.send(signal.SIGINT)
            time.sleep(0.1)
        assert api.wait() == 130
        assert "Traceback" not in api.stderr.text
        busy.close()


def test_a_client_that_has_only_finished_sending_is_answered(endless: Server) -> None:
    body = json.dumps({"prompt": "hello", "max_length": 40}).encode()
    head = f"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    connection = connect(endless, head + body)
    connection.shutdown(socket.SHUT_WR)
    received = read_to_end(connection)
    assert b"HTTP/1.1 200 OK" in received
    assert b'"response":' in received


def test_a_client_that_left_is_counted_apart(endless: Server) -> None:
    open_socket(endless.url, "/", {"prompt": "hello"}).close()
    eventually(lambda: 'status="499"' in endless.get("/metrics").text)
    assert 'status="503"' not in endless.get("/metrics").text


def test_the_key_is_checked_before_the_body(demo: Pipeline) -> None:
    for start in (serving, polling):
        with start(demo, api_key="sesame") as server:
            path = b"/" if start is serving else b"/chat"
            connection = connect(server, HALF_BODY.replace(b"POST /", b"POST " + path))
            assert b" 401 " in connection.recv(65536)
            connection.close()


# --- bodies that cost more than they should ---

COSTLY = {
    "empty pairs": b'{"prompt":"a","history":[' + b'["",""],' * 120_000 + b'["",""]]}',
    "brackets": b"[" * 1_000_000,
    "short strings": b'["ab",' + b'"cd",' * 200_000 + b'"e"]',
    "quotes": b'"' * 1_000_001,
    "keys": b"{" + b",".join(b'"%d":1' % number for number in range(100_000)) + b"}",
    "numbers": b"[" + b"1.5," * 250_000 + b"1]",
    "escapes": b'"' + b"\\n" * 500_000 + b'" "',
    "half surrogates": b'["' + b"\\ud83d" * 160_000 + b'"]',
    "one wide character": b'["' + b"a" * 1_000_000 + "\N{GRINNING FACE}".encode() + b'\\ud83d"]',
}


@pytest.mark.parametrize("body", COSTLY.values(), ids=COSTLY)
def test_refusing_a_body_costs_little_memory(body: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ChatGLMError):
            parse_json(body)
        assert tracemalloc.get_traced_memory()[1] < 10 * len(body)
    finally:
        tracemalloc.stop()


def test_text_is_no_structure() -> None:
    text = '[{,"' * MAX_JSON_PARTS
    assert parse_json(json.dumps({"prompt": text}).encode()) == {"prompt": text}


@pytest.mark.parametrize("num_rounds", [3000])
def test_empty_rounds_are_dropped_unread(endless: Server, num_rounds: int) -> None:
    done = endless.post("/stream", json={"prompt": "hello", "history": [["", ""]] * num_rounds, "max_new_tokens": 1})
    summary = json.loads(done.text.split("event: done\ndata: ")[1].splitlines()[0])
    assert num_rounds - 300 < summary["dropped_rounds"] < num_rounds


# --- foreign pages ---


def statuses(server: Server, **headers: str) -> list[int]:
    path = "/chat" if server.workers is not None else "/"
    body = {"request_id": os.urandom(8).hex(), "query": "a", "prompt": "a", "max_length": 30}
    sent = {"content-type": "text/plain", **{name.replace("_", "-"): value for name, value in headers.items()}}
    return [server.post(path, json=body, headers=sent).status_code, server.get("/health", headers=sent).status_code]


@pytest.mark.parametrize("start", [serving, polling])
def test_pages_of_other_sites_are_refused(endless_pipeline: Pipeline, start: Callable[..., Server]) -> None:
    page = "http://evil.example"
    with start(endless_pipeline) as server:  # type: ignore[attr-defined]
        port = server.url.rsplit(":", 1)[1]
        for headers in (
            {"host": "evil.example"},
            {"host": f"evil.example:{port}"},
            {"host": "localhost.evil.example"},
            {"host": "evil.example@localhost"},
            {"origin": page},
            {"origin": "null"},
            {"origin": "http://localhost:1"},
            {"sec_fetch_site": "cross-site"},
        ):
            assert statuses(server, **headers) == [403, 403], headers
        own = f"http://localhost:{port}"
        for headers in ({"host": f"localhost:{port}"}, {"host": "[::1]"}, {"host": own[7:], "origin": own}):
            assert statuses(server, **headers) == [200, 200], headers
        link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
        assert server.get("/docs", headers=link).status_code == 200
    with start(endless_pipeline, cors=(page,), allowed_hosts=("box.local",)) as server:  # type: ignore[attr-defined]
        assert statuses(server, origin=page, sec_fetch_site="cross-site") == [200, 200]
        assert statuses(server, host="box.local:80") == [200, 200]
        assert statuses(server, origin="http://other.example") == [403, 403]
    for settings in ({"allowed_hosts": ("*",)}, {"host": "0.0.0.0"}):
        with start(endless_pipeline, **settings) as server:  # type: ignore[attr-defined]
            assert statuses(server, host="evil.example") == [200, 200]
