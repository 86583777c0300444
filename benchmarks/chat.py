"""How fast a model loads and answers here: seconds, tokens/s, peak memory.

    python -m benchmarks.chat                     the embedded demo model (its speed predicts nothing for 6B)
    python -m benchmarks.chat --model chatglm-6b --dtype bf16

Decoding reads every weight once per token, so tokens/s is shown beside the floor that this machine's memory bandwidth
sets, measured in the same run by summing an array as large as the weights. The share of exit is that of the seconds
after the answer in those of a whole `cli_demo.py --prompt`. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch

from chatglm.pipeline import load_pipeline

QUESTION = "晚上睡不着应该怎么办"


def read_bandwidth(num_bytes: int, device: torch.device) -> float:
    """Bytes per second of summing an array of `num_bytes` float32 values, best of five."""
    array = torch.ones(max(num_bytes // 4, 1), device=device)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        array.sum().item()
        best = min(best, time.perf_counter() - start)
    return array.numel() * 4 / best


def exit_share(flags: list[str]) -> float:
    """Seconds from the last of the answer to the end of `cli_demo.py --prompt`, in those from its start: least of 3."""
    script = Path(__file__).parents[1] / "cli_demo.py"
    shares = []
    for _ in range(3):
        start = answered = time.perf_counter()
        argv = [sys.executable, str(script), *flags, "--prompt", "你好", "--temperature", "0"]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            assert process.stdout is not None
            while os.read(process.stdout.fileno(), 4096):
                answered = time.perf_counter()
            if process.wait():
                raise SystemExit("cli_demo.py failed.")
        end = time.perf_counter()
        shares.append((end - answered) / (end - start))
    return min(shares)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--tokens", type=int, default=128)
    args = parser.parse_args()
    start = time.perf_counter()
    pipe = load_pipeline(args.model, device=args.device, dtype=args.dtype)
    load_s = time.perf_counter() - start
    limits = {"max_new_tokens": args.tokens, "min_new_tokens": args.tokens, "temperature": 0}
    first_s = total_s = 0.0
    for _ in range(3):  # the last round counts
        start = time.perf_counter()
        deltas = pipe.stream(QUESTION, **limits)
        next(deltas)
        first_s = time.perf_counter() - start
        num_tokens = list(deltas)[-1].completion_tokens
        total_s = time.perf_counter() - start
    weights = {p.data_ptr(): p.numel() * p.element_size() for p in pipe.model.parameters()}
    rate = (num_tokens - 1) / (total_s - first_s)
    floor = read_bandwidth(sum(weights.values()), pipe.model.device) / sum(weights.values())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    result = {
        "model": pipe.name,
        "dtype": str(pipe.model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "load_s": round(load_s, 2),
        "first_token_s": round(first_s, 4),
        "tokens_per_s": round(rate, 1),
        "bandwidth_floor_tokens_per_s": round(floor, 1),
        "fraction_of_floor": round(rate / floor, 3),
        "peak_rss_mb": round(peak / 1e6),
        "exit_share": round(exit_share(["--model", args.model, "--device", args.device, "--dtype", args.dtype]), 3),
    }
    for name, value in result.items():
        print(f"{name:32} {value}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
