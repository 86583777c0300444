"""An HTTP server under load: requests/s, time to first token, tokens/s, memory, and the latency of /health.

    python -m benchmarks.load                                     starts api.py with the demo model and ends it again
    python -m benchmarks.load --url http://127.0.0.1:8000 --api-key KEY --requests 200 --clients 16

The requests are mixed: whole and streamed, upstream's and OpenAI's; a tenth disconnects early, a tenth is malformed.
Clients run in this process, so on a small machine they use part of the CPU. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).parents[1]
QUESTIONS = ("你好", "3+5等于几", "背诵静夜思", "who are you", "晚上睡不着应该怎么办", "hello", "中国的首都是哪里")
MALFORMED: tuple[tuple[str, bytes], ...] = (
    ("/", b'{"prompt": '),
    ("/", b'{"prompt": 7}'),
    ("/stream", b'{"prompt": "hello", "temperature": NaN}'),
    ("/v1/chat/completions", b'{"messages": []}'),
    ("/v1/completions", b'{"prompt": "' + b"x" * 300_000 + b'"}'),
)
WARM_UP = 0.25  # of the requests; memory is compared from then on


@dataclass
class Tally:
    """What the clients measured."""

    statuses: Counter[str] = field(default_factory=Counter)
    first_token_s: list[float] = field(default_factory=list)
    whole_s: list[float] = field(default_factory=list)
    health_s: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def request_bodies(question: str, seed: int) -> dict[str, dict[str, Any]]:
    """{path: body} of one question for every endpoint."""
    messages = [{"role": "user", "content": question}]
    return {
        "/": {"prompt": question, "history": []},
        "/stream": {"prompt": question, "seed": seed},
        "/v1/chat/completions": {"messages": messages, "seed": seed, "stream": bool(seed % 2)},
        "/v1/completions": {"prompt": question, "seed": seed, "max_tokens": 24, "stream": bool(seed % 2)},
    }


async def ask(client: httpx.AsyncClient, number: int, tally: Tally) -> None:
    """One request of the mix, determined by its number."""
    chance = random.Random(number)
    if number % 10 == 0:
        path, content = chance.choice(MALFORMED)
        reply = await client.post(path, content=content, headers={"content-type": "application/json"})
        tally.statuses["malformed"] += 1
        if not 400 <= reply.status_code < 500:
            tally.wrong.append(f"{path} {content[:40]!r} got {reply.status_code}")
        return
    path, body = chance.choice(list(request_bodies(chance.choice(QUESTIONS), number).items()))
    while (wait := await read(client, path, body, tally, leaves=number % 10 == 5)) is not None:
        await asyncio.sleep(wait)


async def read(client: httpx.AsyncClient, path: str, body: dict[str, Any], tally: Tally, leaves: bool) -> float | None:
    """Send a request and read to the end, or disconnect at the first text; returns seconds to wait if rejected."""
    start = time.perf_counter()
    if leaves and path == "/":
        hasty = asyncio.create_task(client.post(path, json=body))
        await asyncio.sleep(0.05)
        hasty.cancel()
        tally.statuses["left"] += 1
        return None
    async with client.stream("POST", path, json=body) as reply:
        if reply.status_code != 200:
            await reply.aread()
            tally.statuses[str(reply.status_code)] += 1
            if reply.status_code == 429:
                return float(reply.headers["retry-after"])
            tally.wrong.append(f"{path} got {reply.status_code} {reply.text[:200]}")
            return None
        has_text = False
        async for line in reply.aiter_lines():
            if not has_text and ('"delta":"' in line or '"content":"' in line or '"text":"' in line):
                has_text = '"content":""' not in line
                if has_text and "text/event-stream" in reply.headers["content-type"]:
                    tally.first_token_s.append(time.perf_counter() - start)
                if leaves:
                    tally.statuses["left"] += 1
                    return None
    tally.statuses["200"] += 1
    tally.whole_s.append(time.perf_counter() - start)
    return None


async def watch_health(client: httpx.AsyncClient, tally: Tally) -> None:
    """Request /health all the time."""
    while True:
        start = time.perf_counter()
        await client.get("/health")
        tally.health_s.append(time.perf_counter() - start)
        await asyncio.sleep(0.05)


async def figures(client: httpx.AsyncClient) -> dict[str, float]:
    """The server's metrics, by name."""
    lines = (await client.get("/metrics")).text.splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


async def settled(client: httpx.AsyncClient) -> dict[str, float]:
    """The metrics once nothing runs or waits."""
    for _ in range(600):
        now = await figures(client)
        if now["chatglm_running"] + now["chatglm_waiting"] == 0:
            return now
        await asyncio.sleep(0.05)
    return now


async def run(url: str, num_requests: int, num_clients: int, api_key: str = "none") -> dict[str, Any]:
    """Send the mix and measure; `wrong` in the report lists unexpected responses."""
    tally = Tally()
    numbers = iter(range(num_requests))
    limits = httpx.Limits(max_connections=num_clients + 2)
    headers = {"authorization": f"Bearer {api_key}"}
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits, headers=headers) as client:
        before = await figures(client)
        memory: list[float] = []

        async def work() -> None:
            for number in numbers:
                await ask(client, number, tally)
                if number >= num_requests * WARM_UP and number % 50 == 0:
                    memory.append((await figures(client))["process_resident_memory_bytes"])

        health = asyncio.create_task(watch_health(client, tally))
        start = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(num_clients)))
        seconds = time.perf_counter() - start
        health.cancel()
        after = await settled(client)
    made = after["chatglm_completion_tokens_total"] - before["chatglm_completion_tokens_total"]
    return {
        "requests": num_requests,
        "clients": num_clients,
        "seconds": round(seconds, 1),
        "requests_per_s": round(num_requests / seconds, 2),
        "tokens_per_s": round(made / seconds, 1),
        "first_token_ms": percentiles(tally.first_token_s),
        "answer_ms": percentiles(tally.whole_s),
        "health_ms": percentiles(tally.health_s),
        "statuses": dict(sorted(tally.statuses.items())),
        "wrong": tally.wrong,
        "memory_mb": [round(value / 1e6) for value in (memory[:1] + memory[-1:])],
        "still_running": after["chatglm_running"] + after["chatglm_waiting"],
        "blocks_not_free": after["chatglm_cache_blocks"] - after["chatglm_cache_blocks_free"],
    }


def percentiles(seconds: list[float]) -> dict[str, float]:
    """p50 and p99 in milliseconds."""
    if len(seconds) < 2:
        return {}
    cuts = statistics.quantiles(seconds, n=100)
    return {"p50": round(cuts[49] * 1000, 1), "p99": round(cuts[98] * 1000, 1)}


@contextmanager
def server_process(flags: list[str], script: str = "api.py") -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A server on a free port: its address and its process, which is gone after the block."""
    command = [sys.executable, script, "--port", "0", "--no-log-requests", *flags]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, encoding="utf-8") as process:
        assert process.stdout is not None
        try:
            found = re.search(r"http://\S+", process.stdout.readline())
            if found is None:
                raise SystemExit(f"{script} did not start.")
            yield found[0], process
        finally:
            process.terminate()
            process.wait(60)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog="Other flags go to api.py, as --model FOLDER."
    )
    parser.add_argument("--url", help="a running server; without it api.py is started here")
    parser.add_argument("--api-key", default="none")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=30)
    args, flags = parser.parse_known_args()
    if args.url:
        report = asyncio.run(run(args.url, args.requests, args.clients, args.api_key))
    else:
        with server_process(flags) as (url, _):
            report = asyncio.run(run(url, args.requests, args.clients, args.api_key))
    for name, value in report.items():
        print(f"{name:16} {value}")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
