"""How fast ChatGLM-6B runs on a GPU, beside what its memory and its matrix units would allow at most.

    python -m benchmarks.gpu                             full size on the first GPU: minutes, and 100 GB of memory
    python -m benchmarks.gpu --batches 1 8 --only step   part of it
    python -m benchmarks.gpu --compare earlier.json      and ratios to the JSON line of an earlier run
    python -m benchmarks.gpu --device cpu --tiny         the same code on a small network, for a look; seconds

Weights are random and made on the device. A floor is the time that copying the bytes (weights once, cached keys and
values of every request) or doing the operations would take, whichever is longer, products and attention one after the
other, at the ceilings measured in the same run; `fraction` is floor / time. Prints tables, then the checks, and one
JSON line last. Ends with 1 if a check fails.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import torch
from torch.autograd import DeviceType

from benchmarks.batching import Letters
from benchmarks.device_ceilings import DeviceCeilings, measure_ceilings, time_in_graph, time_of, wait
from benchmarks.device_model import SIZES_6B, SIZES_TINY, device_network
from chatglm.devices import DTYPES, choose_device
from chatglm.engine import Engine
from chatglm.engine.blocks import blocks_for
from chatglm.engine.graph_runner import GraphRunner
from chatglm.engine.request import Request
from chatglm.engine.runner import Runner
from chatglm.generation.config import GenerationConfig
from chatglm.quantization import kernels
from chatglm.quantization.layers import QuantizedLinear

# Of weights, so that none of them is found in the card's cache again.
NUM_COPIES = 4
Row = dict[str, Any]
# Bytes moved and operations done.
Part = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is measured."""

    sizes: dict[str, int]
    products: tuple[int, ...]
    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    prompts: tuple[int, ...]
    chats: tuple[int, int, int]  # how many, ids of a prompt, ids of an answer
    mixed: tuple[int, int, int]  # how many, most ids of a prompt and of an answer
    steps: int


FULL = Plan(SIZES_6B, (1, 8, 64, 256), (1, 8, 64, 256), (128, 512), (512, 2048), (256, 20, 150), (512, 512, 256), 50)
TINY = Plan(SIZES_TINY, (1, 8), (1, 4), (32,), (64,), (4, 10, 12), (6, 40, 16), 5)


@dataclasses.dataclass
class Bench:
    """One run: the device, its ceilings, what is asked for."""

    device: torch.device
    dtype: torch.dtype
    plan: Plan
    ceilings: DeviceCeilings
    rows: list[Row] = dataclasses.field(default_factory=list)

    def network(self, bits: int, head_bits: int = 16, **sizes: int) -> Any:
        return device_network({**self.plan.sizes, **sizes}, bits, head_bits, self.device, self.dtype)

    def add(self, kind: str, seconds: float, parts: list[Part], **what: Any) -> Row:
        """Note and print what took so long, and the floor of its parts, which follow one another."""
        floor = sum(self.ceilings.floor(*part) for part in parts)
        num_bytes, num_operations = (sum(column) for column in zip(*parts, strict=True))
        row = {"kind": kind, **what, "ms": seconds * 1e3, "floor_ms": floor * 1e3, "fraction": floor / seconds}
        row |= {"gb": num_bytes / 1e9, "gflop": num_operations / 1e9}
        self.rows.append(row)
        shown = " ".join(f"{name}={value}" for name, value in what.items() if not isinstance(value, float))
        extra = " ".join(f"{name}={value:.4g}" for name, value in what.items() if isinstance(value, float))
        print(f"{kind:10} {shown:38} {row['ms']:10.3f} ms {row['fraction']:7.2f} of the floor  {extra}", flush=True)
        return row


# --- work ---


def prompt_of(network: Any, length: int, seed: int) -> list[int]:
    config = network.config
    ids = random.Random(seed).choices(range(10, config.gmask_token_id - 10), k=length - 2)
    return [*ids, config.gmask_token_id, config.bos_token_id]


def greedy(num_new: int) -> GenerationConfig:
    return GenerationConfig(do_sample=False, max_new_tokens=num_new, min_new_tokens=num_new)


def request_of(network: Any, length: int, num_new: int, seed: int = 0) -> Request:
    return Request(network, Letters(), prompt_of(network, length, seed), greedy(num_new))


def parts_of_step(network: Any, batch: int, context: float, times: float = 1) -> list[Part]:
    """So many steps: all products, whose weights are read once, and attention to what every request has stored."""
    products, attention = products_of(network, batch, batch), attention_of(network, batch, context)
    # A step reads each cached position for one query.
    attention = (2 * batch * context * bytes_of_position(network), attention[1])
    return [(times * num_bytes, times * operations) for num_bytes, operations in (products, attention)]


def parts_of_prompt(network: Any, length: int) -> list[Part]:
    """All but the last id of a prompt."""
    return [products_of(network, length - 1, 0), attention_of(network, length - 1, length - 1)]


def products_of(network: Any, num_tokens: int, num_scored: int) -> Part:
    """The blocks' products for some ids, and the head for some of them."""
    config, parts = network.config, [network.transformer.layers, *([network.lm_head] if num_scored else [])]
    num_bytes = sum(parameter.nbytes for part in parts for parameter in part.parameters())
    block = 4 * config.hidden_size**2 + 2 * config.hidden_size * config.inner_hidden_size
    head = config.hidden_size * config.vocab_size
    return num_bytes, 2.0 * (num_tokens * config.num_layers * block + num_scored * head)


def attention_of(network: Any, num_tokens: int, context: float) -> Part:
    """Of some ids to `context` positions each, which are read once."""
    config = network.config
    operations = 4.0 * num_tokens * context * config.num_layers * config.hidden_size
    return 2 * context * bytes_of_position(network), operations


def bytes_of_position(network: Any) -> int:
    """Keys, or values, of all layers."""
    item = network.transformer.final_layernorm.weight.element_size()
    return network.config.num_layers * network.config.hidden_size * item


def new_runner(network: Any, batch: int, num_positions: int) -> GraphRunner:
    return GraphRunner(network, batch * blocks_for(num_positions), batch)


# --- what is measured ---


def measure_products(bench: Bench, all_bits: list[int]) -> None:
    """One product of each kind in a block, and the head."""
    sizes = bench.plan.sizes
    width, inner = sizes["hidden_size"], sizes["inner_hidden_size"]
    shapes = {
        "qkv": (3 * width, width),
        "dense": (width, width),
        "up": (inner, width),
        "down": (width, inner),
        "head": (sizes["vocab_size"], width),
    }
    for bits in all_bits:
        for name, (num_rows, num_columns) in shapes.items():
            layers = [product_layer(bench, bits, num_rows, num_columns) for _ in range(NUM_COPIES)]
            for count in bench.plan.products:
                x = torch.randn(count, num_columns, device=bench.device).to(bench.dtype)
                runs: list[Callable[[], object]] = [lambda layer=layer, x=x: layer(x) for layer in layers] * 5
                with torch.inference_mode():
                    seconds = time_in_graph(runs, bench.device)
                num_bytes = sum(parameter.nbytes for parameter in layers[0].parameters())
                num_bytes += count * (num_rows + num_columns) * x.element_size()
                parts = [(num_bytes, 2.0 * count * num_rows * num_columns)]
                bench.add("product", seconds, parts, bits=bits, of=name, rows=count)


def product_layer(bench: Bench, bits: int, num_rows: int, num_columns: int) -> Any:
    if bits == 16:
        layer: Any = torch.nn.Linear(num_columns, num_rows, device=bench.device, dtype=bench.dtype)
    else:
        layer = QuantizedLinear(num_columns, num_rows, bits).to(bench.device, bench.dtype)
        layer.weight.random_(-128, 128)
        layer.weight_scale.fill_(0.01)
    return layer.requires_grad_(False)


def measure_steps(bench: Bench, network: Any, bits: int) -> None:
    """Decode steps of full batches; each waits for the one before, so time includes everything."""
    num_kernels = kernels_of_step(network) if bench.device.type == "cuda" else 0
    for context in bench.plan.contexts:
        for batch in bench.plan.batches:
            seconds = step_times(network, batch, context, bench.plan.steps)
            median, late = statistics.median(seconds), sorted(seconds)[int(0.99 * len(seconds))]
            bench.add(
                "step",
                median,
                parts_of_step(network, batch, context + bench.plan.steps // 2),
                bits=bits,
                batch=batch,
                context=context,
                kernels=num_kernels,
                tokens_per_s=batch / median,
                ms_p99=late * 1e3,
            )


def step_times(network: Any, batch: int, context: int, num_steps: int) -> list[float]:
    runner = new_runner(network, batch, context + num_steps + 4)
    requests = [request_of(network, context, num_steps + 4, seed) for seed in range(batch)]
    for start in range(0, batch, 16):
        runner.prefill(requests[start : start + 16])
    for _ in range(3):  # captures, and fills the pipeline
        runner.decode(requests)
    times = []
    for _ in range(num_steps):
        begun = time.perf_counter()
        runner.decode(requests)
        times.append(time.perf_counter() - begun)
    assert all(request.finish_reason in (None, "length") for request in requests), "a request failed"
    return times


def kernels_of_step(network: Any) -> int:
    """How many kernels a step of one request starts."""
    runner, request = new_runner(network, 1, 40), request_of(network, 16, 20)
    runner.prefill([request])
    for _ in range(3):
        runner.decode([request])
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        runner.decode([request])
        torch.cuda.synchronize()
    return sum(event.device_type == DeviceType.CUDA for event in profile.events())


def measure_prompts(bench: Bench, network: Any, bits: int) -> None:
    """One prompt, all but its last id."""
    for length in bench.plan.prompts:
        runner = new_runner(network, 1, length + 2)
        times = []
        for _ in range(5):
            request = request_of(network, length, 1)
            wait(bench.device)
            begun = time.perf_counter()
            runner.prefill([request])
            wait(bench.device)
            times.append(time.perf_counter() - begun)
            assert request.finish_reason is None, "a prompt failed"
            request.end("stop")
        seconds = statistics.median(times[1:])
        parts = parts_of_prompt(network, length)
        bench.add("prompt", seconds, parts, bits=bits, length=length, tokens_per_s=length / seconds)


def measure_upstreams_way(bench: Bench, network: Any, bits: int) -> None:
    """Every weight written out for every token, one kernel after the other, no graph: as the original does."""
    runner, request = Runner(network), request_of(network, bench.plan.contexts[0], 40)
    with kernels.use("reference"):
        runner.prefill([request])

        def step() -> None:
            runner.decode([request])

        seconds = time_of(step, bench.device, repeats=5, warm_ups=2)
    context = bench.plan.contexts[0]
    bench.add(
        "original",
        seconds,
        parts_of_step(network, 1, context),
        bits=bits,
        batch=1,
        context=context,
        tokens_per_s=1 / seconds,
    )


def measure_chats(bench: Bench, network: Any, bits: int) -> None:
    """The same short chats together and one alone, from the first prompt to the last id, through the engine."""
    count, num_prompt, num_new = bench.plan.chats
    for batch in (1, count):
        work = [(prompt_of(network, num_prompt, seed), greedy(num_new)) for seed in range(batch)]
        with engine_of(network, batch) as engine:
            rate_of(engine, work)  # captures
            rate = rate_of(engine, work)
        context = num_prompt + num_new // 2
        bench.add(
            "chats",
            batch * num_new / rate,
            parts_of_step(network, batch, context, num_new),
            bits=bits,
            batch=batch,
            prompt=num_prompt,
            new=num_new,
            tokens_per_s=rate,
        )


def measure_mixed(bench: Bench, network: Any, bits: int) -> None:
    """Requests of mixed lengths that come and go, against the same number of steps of full batches."""
    count, most_prompt, most_new = bench.plan.mixed
    chance = random.Random(0)
    prompts = [chance.randint(most_prompt // 16 + 2, most_prompt) for _ in range(count)]
    answers = [chance.randint(most_new // 8, most_new) for _ in range(count)]
    lengths = list(zip(prompts, answers, strict=True))
    work = [(prompt_of(network, prompt, seed), greedy(new)) for seed, (prompt, new) in enumerate(lengths)]
    slots = max(bench.plan.batches)
    with engine_of(network, slots) as engine:
        rate_of(engine, work[: slots // 2])  # captures
        begun, firsts, handles = time.perf_counter(), [], [engine.submit(*one) for one in work]
        for handle in handles:
            next(iter(handle))
            firsts.append(time.perf_counter() - begun)
        num_new = sum(handle.result().completion_tokens for handle in handles)
        seconds = time.perf_counter() - begun
    context = statistics.mean(prompt + new / 2 for prompt, new in lengths)
    # Full batches from the first step to the last, and each prompt alone.
    parts = parts_of_step(network, slots, context, num_new / slots)
    bench.add(
        "mixed",
        seconds,
        parts + [part for prompt in prompts for part in parts_of_prompt(network, prompt)],
        bits=bits,
        requests=count,
        slots=slots,
        tokens_per_s=num_new / seconds,
        id_ms=seconds / num_new * slots * 1e3,
        first_id_s_p50=statistics.median(firsts),
        first_id_s_p99=sorted(firsts)[int(0.99 * count)],
    )


def engine_of(network: Any, slots: int) -> closing[Engine]:
    return closing(Engine(network, Letters(), max_running=slots, max_waiting=10_000, uses_graphs=True))


def rate_of(engine: Engine, work: list[Any]) -> float:
    """Tokens per second of all requests, submitted at once."""
    begun = time.perf_counter()
    handles = [engine.submit(*one) for one in work]
    return sum(handle.result().completion_tokens for handle in handles) / (time.perf_counter() - begun)


# --- checks ---


def check(bench: Bench, all_bits: list[int]) -> dict[str, Any]:
    """On a network of two layers of full width: graphs choose as plain calls, and numbers stay close to float32."""
    checks: dict[str, Any] = {}
    for bits in all_bits:
        network = bench.network(bits, num_layers=2)
        prompt = prompt_of(network, min(100, bench.plan.sizes["max_sequence_length"] // 2), 7)
        graph, plain = (chosen_ids(network, prompt, uses_graphs) for uses_graphs in (True, False))
        error = error_of_scores(bench, network, prompt)
        checks[f"{bits} bits"] = {"same_ids": sum(map(int.__eq__, graph, plain)), "of": len(plain), "error": error}
    return checks


def chosen_ids(network: Any, prompt: list[int], uses_graphs: bool) -> list[int]:
    request = Request(network, Letters(), prompt, greedy(32))
    runner = new_runner(network, 1, request.num_positions) if uses_graphs else Runner(network)
    runner.prefill([request])
    while request.finish_reason is None:
        runner.decode([request])
    assert request.finish_reason == "length", "a request failed"
    return request.tokens.ids[0, len(prompt) :].tolist()


@torch.inference_mode()
def error_of_scores(bench: Bench, network: Any, prompt: list[int]) -> float:
    """Of the scores after a prompt by the kernels of a step, relative to the norm of float32's by plain products."""
    request = Request(network, Letters(), prompt, greedy(1))
    runner = new_runner(network, 1, request.num_positions)
    runner.prefill([request])
    scores = runner.scores(request).float()
    ids = torch.tensor([prompt], device=bench.device)
    with kernels.use("reference"):
        exact = network.float()
        expected = exact.prefill(ids, exact.prompt_layout(ids), exact.new_cache(len(prompt)))
    return float((scores - expected).norm() / expected.norm())


def is_passed(result: Row) -> bool:
    # Half-precision scores of random weights have near ties: a few ids may differ, after which all do.
    return result["error"] <= 1e-2 and result["same_ids"] >= 1


# --- the whole ---


def run(args: argparse.Namespace) -> dict[str, Any]:
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
        network = bench.network(bits, args.head_bits)
        for name, measure in MEASURES.items():
            if name in args.only and not (name == "original" and bits == 16):
                measure(bench, network, bits)
        del network
        release(device)
    checks = check(bench, args.bits)
    for name, result in checks.items():
        print(f"check {name}: {result['same_ids']} of {result['of']} ids alike, error {result['error']:.2g}")
    return {
        "schema": 1,
        "commit": commit(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "torch": torch.__version__,
        "triton": triton_version(),
        "dtype": str(dtype).removeprefix("torch."),
        "head_bits": args.head_bits,
        "ceilings": {"copy_gb_per_s": ceilings.bytes_per_s / 1e9, "matmul_tflops": ceilings.operations_per_s / 1e12},
        "model": plan.sizes,
        "rows": bench.rows,
        "checks": checks,
        "passed": all(map(is_passed, checks.values())),
    }


MEASURES: dict[str, Callable[[Bench, Any, int], None]] = {
    "step": measure_steps,
    "prompt": measure_prompts,
    "original": measure_upstreams_way,
    "chats": measure_chats,
    "mixed": measure_mixed,
}


def release(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()


def commit() -> str:
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
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
