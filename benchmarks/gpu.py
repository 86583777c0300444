"""How fast ChatGLM-6B runs on a GPU, beside what its memory and its matrix units would allow at most.

    python -m benchmarks.gpu                             full size on the first GPU: minutes, and 100 GB of memory
    python -m benchmarks.gpu --batches 1 8 --only step   part of it
    python -m benchmarks.gpu --compare earlier.json      and ratios to the JSON line of an earlier run
    python -m benchmarks.gpu --device cpu --tiny         the same code on a small network, for a look; seconds

Weights are random and made on the device. A floor is the time that copying the bytes (weights once, cached keys and
values of every request) or doing the operations would take, whichever is longer, products and attention one after the
other, at the ceilings measured in the same run; `fraction` is floor / time. "original" writes every packed weight out
for every token, as the original does. Prints tables, then the checks, how many kernels a step starts, and one JSON
line last. Ends with 1 if a check fails.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import time
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import torch

from benchmarks.batching import Letters
from benchmarks.device_ceilings import measure_ceilings, release
from benchmarks.device_measures import MEASURES, Bench, Row, launches_of_step, measure_products, new_runner
from benchmarks.device_work import FULL, TINY, greedy, prompt_of
from chatglm import kernels
from chatglm.devices import DTYPES, choose_device
from chatglm.engine.decoder import BatchDecoder
from chatglm.engine.request import Request
from chatglm.engine.runner import Runner

# Of scores, relative: a hundredth, or so many steps of a type that is coarser than half.
ERROR_BOUND, ERROR_STEPS = 1e-2, 10


# --- checks ---


def check(bench: Bench, all_bits: list[int]) -> dict[str, Any]:
    """On a network of two layers of full width: graphs choose as plain calls, and numbers stay close to float32."""
    checks: dict[str, Any] = {}
    for bits in all_bits:
        network = bench.network(bits, num_layers=2)
        prompt = prompt_of(network, min(100, bench.plan.sizes["max_sequence_length"] // 2), 7)
        graph, plain = (chosen_ids(network, prompt, uses_graphs) for uses_graphs in (True, False))
        error = error_of_scores(bench, network, prompt)
        result = {"same_ids": sum(map(int.__eq__, graph, plain)), "of": len(plain), "error": error}
        checks[f"{bits} bits"] = result | {"error_bound": max(ERROR_BOUND, ERROR_STEPS * torch.finfo(bench.dtype).eps)}
    return checks


def chosen_ids(network: Any, prompt: list[int], uses_graphs: bool) -> list[int]:
    request = Request(BatchDecoder(network), Letters(), prompt, greedy(32))
    runner = new_runner(network, 1, request.num_positions) if uses_graphs else Runner(BatchDecoder(network))
    runner.prefill([request])
    while request.finish_reason is None:
        runner.decode([request])
    assert request.finish_reason == "length", "a request failed"
    return request.token_ids[len(prompt) :]


@torch.inference_mode()
def error_of_scores(bench: Bench, network: Any, prompt: list[int]) -> float:
    """Of the scores after a prompt by the kernels of a step, relative to the norm of float32's by plain products."""
    request = Request(BatchDecoder(network), Letters(), prompt, greedy(1))
    runner = new_runner(network, 1, request.num_positions)
    runner.prefill([request])
    scores = runner.logits(request).float()
    ids = torch.tensor([prompt], device=bench.device)
    with kernels.use("reference"):
        exact = BatchDecoder(network.float())
        expected = exact.prefill(ids, exact.prompt_layout(ids), exact.new_cache(len(prompt)))
    return float((scores - expected).norm() / expected.norm())


def is_passed(result: Row) -> bool:
    # Half-precision scores of random weights have near ties: a few ids may differ, after which all do.
    return result["error"] <= result["error_bound"] and result["same_ids"] >= 1


# --- the whole ---


def run(args: argparse.Namespace) -> dict[str, Any]:
    code, begun = commit(), time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    device = choose_device(args.device)
    dtype = DTYPES[args.dtype] if device.type == "cuda" else torch.float32
    plan = TINY if args.tiny else FULL
    if args.batches:
        plan = dataclasses.replace(plan, batches=tuple(args.batches))
    bench = Bench(device, dtype, plan, measure_ceilings(device, dtype))
    ceilings = bench.ceilings
    print(f"copies {ceilings.bytes_per_s / 1e9:.0f} GB/s, products {ceilings.operations_per_s / 1e12:.3g} TFLOP/s")
    if "product" in args.only:
        measure_products(bench, args.bits)
    for bits in args.bits:
        measure_network(bench, bits, args)
    checks = check(bench, args.bits)
    for name, result in checks.items():
        print(f"check {name}: {result['same_ids']} of {result['of']} ids alike, error {result['error']:.2g}")
    return {
        "schema": 1,
        "commit": code,
        "time": begun,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "torch": torch.__version__,
        "triton": triton_version(),
        "dtype": str(dtype).removeprefix("torch."),
        "head_bits": args.head_bits,
        "ceilings": {"copy_gb_per_s": ceilings.bytes_per_s / 1e9, "matmul_tflops": ceilings.operations_per_s / 1e12},
        "model": plan.sizes,
        "rows": bench.rows,
        "launches": count_launches(bench, args) if "step" in args.only else {},
        "checks": checks,
        "passed": all(map(is_passed, checks.values())),
    }


def measure_network(bench: Bench, bits: int, args: argparse.Namespace) -> None:
    release(bench.device)
    network = bench.network(bits, args.head_bits)
    for name, measure in MEASURES.items():
        if name in args.only:
            measure(bench, network, bits)


def count_launches(bench: Bench, args: argparse.Namespace) -> dict[str, int]:
    counts = {}
    for bits in args.bits:
        release(bench.device)
        count = counts[f"{bits} bits"] = launches_of_step(bench, bench.network(bits, args.head_bits))
        print(f"launches of a step of one request, {bits} bits: {count}", flush=True)
    return counts


def commit() -> str:
    try:
        found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    except OSError:  # there is no git
        return "unknown"
    return found.stdout.strip() or "unknown"


def triton_version() -> str | None:
    return version("triton") if find_spec("triton") is not None else None


def compare(rows: list[Row], before: list[Row]) -> None:
    """How many times faster each row is than the same one of an earlier run."""

    def name(row: Row) -> tuple[Any, ...]:
        return tuple((key, value) for key, value in row.items() if not isinstance(value, float))

    known = {name(row): row["ms"] for row in before}
    for row in rows:
        if name(row) in known:
            print(f"{known[name(row)] / row['ms']:6.2f} times as fast: " + " ".join(f"{k}={v}" for k, v in name(row)))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", choices=("fp16", "bf16"), default="fp16", help="on a GPU; a CPU runs float32")
    parser.add_argument("--tiny", action="store_true", help="a small network")
    parser.add_argument("--bits", type=int, nargs="+", choices=(4, 8, 16), default=[16, 8, 4])
    parser.add_argument("--head-bits", type=int, choices=(8, 16), default=16)
    parser.add_argument("--batches", type=int, nargs="+")
    kinds = ["product", *MEASURES]
    parser.add_argument("--only", nargs="+", choices=kinds, default=kinds)
    parser.add_argument("--compare", metavar="JSON", help="the output of an earlier run")
    args = parser.parse_args()
    result = run(args)
    if args.compare:
        with open(args.compare, encoding="utf-8") as file:
            compare(result["rows"], json.loads(file.read().splitlines()[-1])["rows"])
    print(json.dumps(result))
    return 0 if result["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
