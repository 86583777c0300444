"""A server under clients of every kind, round after round: what is answered wrongly, what is not given back.

    python -m benchmarks.clients                       starts api.py with the demo model and ends it with SIGTERM
    python -m benchmarks.clients --rounds 5 --model chatglm-6b-int4
    python -m benchmarks.clients --script stream_api.py

    load       a mix of whole and streamed requests, some malformed, some abandoned (benchmarks.load); of stream_api.py,
               which has no streams, questions whose answers are polled and compared for each seed
    burst      more requests at once than run and wait; those rejected try again when the server says
    slow       clients that do not read their stream (api.py)
    half-open  connections that send nothing, or half of a request
    stopped    clients that reset the connection in the middle of an answer

Prints a table, and one JSON line last. Open connections of the last round are still there when SIGTERM comes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import struct
import subprocess
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

import httpx

from benchmarks.load import Tally, ask, figures, read, run, server_process, settled

API, POLLING = "api.py", "stream_api.py"
QUESTION = {"prompt": "介绍一下北京", "max_new_tokens": 200}
POLLED = {"query": "介绍一下北京", "max_new_tokens": 40}
BUSY = 100  # the code of stream_api.py
HALVES = (
    b"",
    b"POST / HTTP/1.1\r\nHost: loc",
    b'POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{"prompt"',
)
NUM_BURST = 100
NUM_SEEDS = 4
NUM_CONNECTIONS = 30

Kind = Callable[["Server"], Awaitable[tuple[int, list[str]]]]


class Server:
    """The address of a server, and connections to it that stay open."""

    def __init__(self, url: str, script: str) -> None:
        self.url = url
        self._script = script
        self._address = (str(urlsplit(url).hostname), int(urlsplit(url).port or 80))
        self._open: list[socket.socket] = []

    def connect(self, sent: bytes) -> socket.socket:
        connection = socket.create_connection(self._address, 60)
        connection.sendall(sent)
        self._open.append(connection)
        return connection

    def request(self) -> bytes:
        """Asks for a long answer."""
        if self._script == API:
            return head_and_body("/stream", QUESTION)
        return head_and_body("/chat", {"request_id": uuid.uuid4().hex, **POLLED})

    def close_all(self) -> None:
        while self._open:
            self._open.pop().close()

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.url, timeout=600, limits=httpx.Limits(max_connections=NUM_BURST))


def head_and_body(path: str, fields: dict[str, Any]) -> bytes:
    body = json.dumps(fields).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def load(server: Server) -> tuple[int, list[str]]:
    report = await run(server.url, 60, 8)
    return report["requests"], report["wrong"]


async def burst(server: Server) -> tuple[int, list[str]]:
    tally = Tally()

    async def one(number: int) -> None:
        while (wait := await read(client, "/stream", {**QUESTION, "seed": number}, tally, leaves=False)) is not None:
            await asyncio.sleep(wait)

    async with server.client() as client:
        await asyncio.gather(*(one(number) for number in range(NUM_BURST)))
    return NUM_BURST, tally.wrong


async def slow(server: Server) -> tuple[int, list[str]]:
    """Others are answered meanwhile."""
    for _ in range(8):
        server.connect(server.request())
    tally = Tally()
    async with server.client() as client:
        for number in range(1, 5):
            await ask(client, number, tally)
    return 12, tally.wrong


async def half_open(server: Server) -> tuple[int, list[str]]:
    for number in range(NUM_CONNECTIONS):
        server.connect(HALVES[number % len(HALVES)])
    async with server.client() as client:
        reply = await client.get("/health")
    return NUM_CONNECTIONS, [] if reply.status_code == 200 else [f"/health got {reply.status_code}"]


async def stopped(server: Server) -> tuple[int, list[str]]:
    for _ in range(NUM_CONNECTIONS):
        connection = server.connect(server.request())
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
    return NUM_CONNECTIONS, []


async def polled(client: httpx.AsyncClient, seed: int) -> str:
    """An answer of stream_api.py."""
    request_id = uuid.uuid4().hex
    while (asked := await _post(client, "/chat", request_id, **POLLED, seed=seed))["code"] == BUSY:
        await asyncio.sleep(1)
    while asked["code"] == 0:
        answer = (await _post(client, "/get_response", request_id))["response"]
        if answer["is_finished"]:
            return str(answer["response"])
        await asyncio.sleep(0.1)
    return f"code {asked['code']}: {asked['msg']}"


async def _post(client: httpx.AsyncClient, path: str, request_id: str, **fields: Any) -> dict[str, Any]:
    reply: dict[str, Any] = (await client.post(path, json={"request_id": request_id, **fields})).json()
    return reply


async def poll_many(server: Server, num_requests: int) -> tuple[int, list[str]]:
    """All at once; the answers of one seed must be the same."""
    async with server.client() as client:
        expected = [await polled(client, seed) for seed in range(NUM_SEEDS)]
        answers = await asyncio.gather(*(polled(client, number % NUM_SEEDS) for number in range(num_requests)))
    wrong = [text for number, text in enumerate(answers) if text != expected[number % NUM_SEEDS]]
    return NUM_SEEDS + num_requests, wrong


KINDS: dict[str, dict[str, Kind]] = {
    API: {"load": load, "burst": burst, "slow": slow, "half-open": half_open, "stopped": stopped},
    POLLING: {
        "load": lambda server: poll_many(server, 8),
        "burst": lambda server: poll_many(server, NUM_BURST),
        "half-open": half_open,
        "stopped": stopped,
    },
}


async def play(server: Server, kinds: dict[str, Kind], num_rounds: int) -> list[dict[str, Any]]:
    """One row for each kind and round."""
    rows = []
    for number in range(num_rounds):
        for name, kind in kinds.items():
            start = time.perf_counter()
            num_requests, wrong = await kind(server)
            async with server.client() as client:
                after = await settled(client)
            rows.append(
                {
                    "round": number + 1,
                    "clients": name,
                    "requests": num_requests,
                    "wrong": len(wrong),
                    "seconds": round(time.perf_counter() - start, 1),
                    "blocks_free": int(after["chatglm_cache_blocks_free"]),
                    "blocks": int(after["chatglm_cache_blocks"]),
                    "memory_mb": round(after["process_resident_memory_bytes"] / 1e6),
                }
            )
            print("  ".join(f"{value!s:>10}" for value in rows[-1].values()), flush=True)
        if number + 1 < num_rounds:
            server.close_all()
    return rows


async def memory_of(server: Server) -> float:
    async with server.client() as client:
        return (await figures(client))["process_resident_memory_bytes"]


def seconds_to_end(process: subprocess.Popen[str]) -> float:
    start = time.perf_counter()
    process.terminate()
    code = process.wait(60)
    if code:
        raise SystemExit(f"The server ended with {code}.")
    return time.perf_counter() - start


def main() -> None:
    """Start, play, end, report."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0], epilog="Other flags go to the server."
    )
    parser.add_argument("--script", choices=KINDS, default=API)
    parser.add_argument("--rounds", type=int, default=3)
    args, flags = parser.parse_known_args()
    kinds = KINDS[args.script]
    with server_process(flags, args.script) as (url, process):
        server = Server(url, args.script)
        before = asyncio.run(memory_of(server))
        print(
            "  ".join(
                f"{name:>10}"
                for name in ("round", "clients", "requests", "wrong", "seconds", "blocks free", "of", "MB")
            )
        )
        rows = asyncio.run(play(server, kinds, args.rounds))
        ended = seconds_to_end(process)
        server.close_all()
    summary = {
        "requests": sum(row["requests"] for row in rows),
        "wrong": sum(row["wrong"] for row in rows),
        "blocks_not_free": sum(row["blocks"] - row["blocks_free"] for row in rows),
        "memory_mb": [round(before / 1e6), rows[len(kinds) - 1]["memory_mb"], rows[-1]["memory_mb"]],
        "seconds_to_end_after_sigterm": round(ended, 2),
    }
    for name, value in summary.items():
        print(f"{name:30} {value}")
    print(json.dumps({**summary, "rows": rows}))


if __name__ == "__main__":
    main()
