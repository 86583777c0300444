"""What rejecting a request costs a server: processor time per MB of its body, and memory per byte.

    python -m benchmarks.rejected_requests                 api.py with the demo model, bodies of 4 MB
    python -m benchmarks.rejected_requests --megabytes 8 --model chatglm-6b-int4

Each body is sent five times to each endpoint. The bounds are BOUND_MS and BOUND_BYTES; the exit code is 1 beyond them.
Linux only. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx

from benchmarks.load import server_process

PATHS = ("/", "/stream", "/v1/chat/completions", "/v1/completions")
BOUND_MS, BOUND_BYTES = 50.0, 10.0
REPEATS = 5
TICKS_PER_SECOND = 100  # of /proc, on every Linux


def repeated(start: str, part: str, end: str) -> Callable[[int], bytes]:
    """Makes bodies of about so many bytes."""
    return lambda size: (start + part * (size // len(part)) + end).encode()


REQUESTS: dict[str, Callable[[int], bytes]] = {
    "empty pairs": repeated('{"prompt":"a","history":[', '["",""],', '["",""]]}'),
    "short rounds": repeated('{"prompt":"a","history":[', '["a","b"],', '["a","b"]]}'),
    "messages": repeated(
        '{"messages":[', '{"role":"user","content":"a"},{"role":"assistant","content":"b"},',
        '{"role":"user","content":"a"}]}',
    ),
    "empty messages": repeated('{"messages":[', '{"role":"user","content":""},', '{"role":"user","content":"a"}]}'),
    "one speaker": repeated(
        '{"messages":[', '{"role":"user","content":"' + "fox " * 900 + '"},', '{"role":"user","content":"a"}]}'
    ),
    "one long question": repeated('{"prompt":"', "fox ", '"}'),
    "one long word": repeated('{"prompt":"', "x", '"}'),
    "Chinese": repeated('{"prompt":"', "好", '"}'),
    "line breaks": repeated('{"prompt":"', "\\n", '"}'),
    "escapes": repeated('{"prompt":"', "\\u4f60", '"}'),
    "half surrogates": repeated('{"prompt":"', "\\ud83d", '"}'),
    "brackets": repeated("", "[", ""),
    "braces": repeated("", '{"a":', ""),
    "keys": lambda size: ("{" + ",".join(f'"{n}":1' for n in range(size // 11)) + "}").encode(),
    "digits": repeated('{"prompt":"a","seed":', "1", "}"),
    "fractions": repeated('{"prompt":"a","top_p":7.', "3", "}"),
    "stop strings": repeated('{"prompt":"a","stop":[', '"ab",', '"ab"]}'),
    "one wide character": repeated('{"prompt":"\N{GRINNING FACE}', "x", '"}'),
    "spaces": repeated('{"prompt":5,', " ", '"history":5}'),
    "no JSON": repeated("", "\x00", ""),
}  # fmt: skip


class Process:
    """Another process, as /proc tells of it."""

    def __init__(self, pid: int) -> None:
        self._folder = Path("/proc") / str(pid)

    def cpu_seconds(self) -> float:
        fields = (self._folder / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND

    def resident_bytes(self, name: str) -> int:
        """VmRSS (now) or VmHWM (the peak since the last `forget_peak`)."""
        lines = (self._folder / "status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))

    def forget_peak(self) -> None:
        (self._folder / "clear_refs").write_text("5")


def costs(client: httpx.Client, process: Process, path: str, body: bytes) -> dict[str, Any]:
    """The mean time of REPEATS requests, since /proc counts in hundredths of a second, and the least memory."""
    statuses, grown = set(), []
    start = process.cpu_seconds()
    for _ in range(REPEATS):
        process.forget_peak()
        before = process.resident_bytes("VmRSS")
        statuses.add(client.post(path, content=body, headers={"content-type": "application/json"}).status_code)
        grown.append(process.resident_bytes("VmHWM") - before)
    seconds = (process.cpu_seconds() - start) / REPEATS
    return {
        "status": max(statuses),
        "ms_per_mb": round(1e9 * seconds / len(body), 1),
        "bytes_per_byte": round(min(grown) / len(body), 1),
    }


def rows(url: str, pid: int, megabytes: float) -> Iterator[dict[str, Any]]:
    with httpx.Client(base_url=url, timeout=600) as client:
        client.post("/", json={"prompt": "hello"}).raise_for_status()
        for name, make in REQUESTS.items():
            body = make(int(1e6 * megabytes))
            for path in PATHS:
                yield {"request": name, "path": path, **costs(client, Process(pid), path, body)}


def is_within(row: dict[str, Any]) -> bool:
    return 400 <= row["status"] < 500 and row["ms_per_mb"] <= BOUND_MS and row["bytes_per_byte"] <= BOUND_BYTES


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog="Other flags go to api.py.")
    parser.add_argument("--megabytes", type=float, default=4, help="of each body (at most 10 are read)")
    args, flags = parser.parse_known_args()
    measured = []
    with server_process(flags) as (url, process):
        print(f"{'request':18} {'path':22} {'status':>6} {'ms/MB':>7} {'bytes/byte':>10}")
        for row in rows(url, process.pid, args.megabytes):
            mark = "" if is_within(row) else "  beyond the bounds"
            figures = f"{row['status']:6} {row['ms_per_mb']:7} {row['bytes_per_byte']:10}"
            print(f"{row['request']:18} {row['path']:22} {figures}{mark}", flush=True)
            measured.append(row)
    worst = {name: max(row[name] for row in measured) for name in ("ms_per_mb", "bytes_per_byte")}
    beyond = [row for row in measured if not is_within(row)]
    print(json.dumps({"kinds": len(REQUESTS), "requests": REPEATS * len(measured), **worst, "beyond": beyond}))
    return int(bool(beyond))


if __name__ == "__main__":
    sys.exit(main())
