"""Connections that send nothing, half of a request, or too much; those that only finished sending; foreign pages."""

from __future__ import annotations

import asyncio
import json
import resource
import socket
import tracemalloc
from contextlib import suppress
from typing import Any

import httpx
import pytest

from chatglm.cli.settings import Settings
from chatglm.errors import ChatGLMError
from chatglm.pipeline import Pipeline
from chatglm.serving.app import create_app
from chatglm.serving.connections import connection_bounds
from chatglm.serving.schemas import MAX_JSON_PARTS, parse_json
from chatglm.serving.service import RequestService
from tests.serving.servers import (
    BEGINNINGS,
    HALF_BODY,
    HALF_HEADERS,
    Server,
    connect,
    eventually,
    open_socket,
    serving,
)


def read_to_end(connection: socket.socket) -> bytes:
    """What comes until the other end closes the connection."""
    received = b""
    with connection, suppress(ConnectionResetError):
        while chunk := connection.recv(65536):
            received += chunk
    return received


def test_unfinished_requests_are_ended_and_the_key_comes_first(demo: Pipeline) -> None:
    with serving(demo, header_timeout=0.3, body_timeout=0.3, api_key="sesame") as server:
        ends = {name: read_to_end(connect(server.url, sent)) for name, sent in BEGINNINGS.items()}
        assert [ends[name] for name in ("silent", "half of the headers")] == [b"", b""]
        assert b" 401 " in ends["half of the body"].splitlines()[0]
        late = read_to_end(
            connect(server.url, HALF_BODY.replace(b"Content", b"Authorization: Bearer sesame\r\nContent", 1))
        )
        assert b" 408 " in late.splitlines()[0]
        assert b"did not arrive within 0.3 seconds" in late
        connection = connect(server.url, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        connection.sendall(HALF_HEADERS)  # the second request of a connection is no exception
        received = read_to_end(connection)
        assert b"200 OK" in received
        assert received.count(b"HTTP/1.1") == 1


def test_more_connections_than_allowed_are_turned_away(demo: Pipeline) -> None:
    with serving(demo, max_connections=3) as server:
        silent = [connect(server.url) for _ in range(3)]
        assert read_to_end(connect(server.url)).startswith(b"HTTP/1.1 503 ")
        for each in silent:
            each.close()
        assert eventually(lambda: server.get("/health").status_code == 200)


@pytest.mark.parametrize("limit", [resource.RLIM_INFINITY, 10, 100, 150, 300, 1024, 4096, 65536])
def test_there_are_files_left_for_others(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (limit, limit))
    connections, backlog = connection_bounds(1000)
    assert 1 <= connections <= 1000
    assert backlog >= 1
    if limit == resource.RLIM_INFINITY or limit > 5000:
        assert connections == 1000
    elif limit > 100:
        assert connections + 3 * backlog < limit - 50


def test_a_client_that_has_only_finished_sending_is_answered(endless: Server) -> None:
    body = json.dumps({"prompt": "hello", "max_length": 40}).encode()
    head = f"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    connection = connect(endless.url, head + body)
    connection.shutdown(socket.SHUT_WR)
    received = read_to_end(connection)
    assert b"HTTP/1.1 200 OK" in received
    assert b'"response":' in received


def test_a_client_that_left_is_counted_apart(endless: Server) -> None:
    open_socket(endless.url, "/", {"prompt": "hello"}).close()
    eventually(lambda: 'status="499"' in endless.get("/metrics").text)
    assert 'status="503"' not in endless.get("/metrics").text


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
    sent = {"content-type": "text/plain", **{name.replace("_", "-"): value for name, value in headers.items()}}
    asked = server.post("/", json={"prompt": "a", "max_length": 30}, headers=sent)
    return [asked.status_code, server.get("/health", headers=sent).status_code]


def test_pages_of_other_sites_are_refused(endless: Server) -> None:
    port = endless.url.rsplit(":", 1)[1]
    for headers in (
        {"host": "evil.example"},
        {"host": f"evil.example:{port}"},
        {"host": "localhost.evil.example"},
        {"host": "evil.example@localhost"},
        {"host": "["},
        {"host": "a]b"},
        {"origin": "http://["},
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost:1"},
        {"sec_fetch_site": "cross-site"},
    ):
        assert statuses(endless, **headers) == [403, 403], headers
    own = f"http://localhost:{port}"
    for headers in ({"host": f"localhost:{port}"}, {"host": "[::1]"}, {"host": own[7:], "origin": own}):
        assert statuses(endless, **headers) == [200, 200], headers
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert endless.get("/docs", headers=link).status_code == 200


def test_foreign_pages_of_the_polling_api(poll: Server) -> None:
    assert poll.post("/chat", json={}, headers={"origin": "http://evil.example"}).status_code == 403
    assert poll.get("/health", headers={"host": "evil.example"}).status_code == 403


@pytest.mark.parametrize(
    ("settings", "headers", "is_allowed"),
    [
        ({"cors": ("http://a.example",)}, {"origin": "http://a.example", "sec-fetch-site": "cross-site"}, True),
        ({"cors": ("http://a.example",)}, {"origin": "http://b.example"}, False),
        ({"allowed_hosts": ("box.local",)}, {"host": "box.local:80"}, True),
        ({"allowed_hosts": ("*",)}, {"host": "b.example", "origin": "http://c.example"}, True),
        ({"host": "0.0.0.0"}, {"host": "b.example"}, True),
        ({"api_key": "sesame"}, {"host": "b.example", "authorization": "Bearer sesame"}, True),
    ],
)
def test_what_opens_a_server(
    demo: Pipeline, settings: dict[str, Any], headers: dict[str, str], is_allowed: bool
) -> None:
    async def ask() -> int:
        transport = httpx.ASGITransport(create_app(RequestService(demo, Settings(**settings))))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return (await client.get("/health", headers=headers)).status_code

    assert asyncio.run(ask()) == (200 if is_allowed else 403)
