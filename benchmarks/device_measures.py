"""What a network is timed at on a device: products, steps, prompts, the original's way, many requests.

Knows: which calls are timed, and what is prepared before them, so that no row depends on those before it. Does not
know which rows are asked for, or what becomes of them.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from benchmarks.batching import Letters
from benchmarks.device_ceilings import DeviceCeilings, release, time_in_graph, time_of, wait
from benchmarks.device_model import device_network
from benchmarks.device_work import (
    ORIGINAL_ANSWER,
    WARM_UP_STEPS,
    Part,
    Plan,
    greedy,
    parts_of_prompt,
    parts_of_step,
    prompt_of,
    request_of,
)
from chatglm import kernels
from chatglm.engine import Engine
from chatglm.engine.block_manager import BlockManager, blocks_for
from chatglm.engine.decoder import BatchDecoder
from chatglm.engine.graph_runner import GraphRunner
from chatglm.engine.request import Request
from chatglm.engine.runner import Runner
from chatglm.kernels.triton.weight_extraction import linear_written_out
from chatglm.quantization.layers import QuantizedLinear

# Of a product's weights at least, and rounds over all copies in a graph.
NUM_COPIES, NUM_ROUNDS = 4, 5
# Prompts that are taken in together.
PROMPTS_AT_ONCE = 16
# Those of fused attention that need no plan for a length they have not seen.
PLANLESS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
Row = dict[str, Any]


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


class ReservingRunner(GraphRunner):
    """A GraphRunner without a scheduler: it reserves and releases the blocks of its requests itself."""

    def prefill(self, requests: Sequence[Request]) -> None:
        for request in [request for request in self._slots if request.finish_reason is not None]:
            self._blocks.release(request)
        for request in requests:
            assert self._blocks.reserve(request, request.num_positions), "too few blocks"
        super().prefill(requests)


def new_runner(network: Any, batch: int, num_positions: int) -> ReservingRunner:
    return ReservingRunner(BatchDecoder(network), BlockManager(batch * blocks_for(num_positions)), batch)


# --- products ---


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
        for name, shape in shapes.items():
            measure_product(bench, bits, name, *shape)


def measure_product(bench: Bench, bits: int, name: str, num_rows: int, num_columns: int) -> None:
    release(bench.device)
    layers = [product_layer(bench, bits, num_rows, num_columns, has_bias=name != "head")]
    weight_bytes = sum(parameter.nbytes for parameter in layers[0].parameters())
    num_copies = max(NUM_COPIES, math.ceil(bench.plan.products_bytes / weight_bytes))
    layers += [copy.deepcopy(layers[0]) for _ in range(num_copies - 1)]
    for count in bench.plan.products:
        x = torch.randn(count, num_columns, device=bench.device).to(bench.dtype)
        runs = [partial(layer, x) for layer in layers] * NUM_ROUNDS
        with torch.inference_mode():
            seconds = time_in_graph(runs, bench.device)
        num_bytes = weight_bytes + count * (num_rows + num_columns) * x.element_size()
        parts = [(num_bytes, 2.0 * count * num_rows * num_columns)]
        bench.add("product", seconds, parts, bits=bits, of=name, rows=count)


def product_layer(bench: Bench, bits: int, num_rows: int, num_columns: int, *, has_bias: bool) -> Any:
    if bits == 16:
        layer: Any = torch.nn.Linear(num_columns, num_rows, has_bias, bench.device, bench.dtype)
    else:
        layer = QuantizedLinear(num_columns, num_rows, bits, has_bias).to(bench.device, bench.dtype)
        layer.weight.random_(-128, 128)
        layer.weight_scale.fill_(0.01)
    return layer.requires_grad_(False)


# --- steps and prompts ---


def measure_steps(bench: Bench, network: Any, bits: int) -> None:
    """Decode steps of full batches; each waits for the one before, so time includes everything."""
    for context in bench.plan.contexts:
        for batch in bench.plan.batches:
            seconds = step_times(bench, network, batch, context)
            median, late = statistics.median(seconds), sorted(seconds)[int(0.99 * len(seconds))]
            bench.add(
                "step",
                median,
                parts_of_step(network, batch, context + bench.plan.steps // 2),
                bits=bits,
                batch=batch,
                context=context,
                tokens_per_s=batch / median,
                ms_p99=late * 1e3,
            )


def step_times(bench: Bench, network: Any, batch: int, context: int) -> list[float]:
    release(bench.device)
    num_new = bench.plan.step_answer
    runner = new_runner(network, batch, context + num_new)
    requests = [request_of(network, context, num_new, seed) for seed in range(batch)]
    for start in range(0, batch, PROMPTS_AT_ONCE):
        runner.prefill(requests[start : start + PROMPTS_AT_ONCE])
    for _ in range(WARM_UP_STEPS):
        runner.decode(requests)
    times = []
    for _ in range(bench.plan.steps):
        begun = time.perf_counter()
        runner.decode(requests)
        times.append(time.perf_counter() - begun)
    assert all(request.finish_reason is None for request in requests), "a request failed"
    return times


def launches_of_step(bench: Bench, network: Any) -> int:
    """How many kernels a step of one request starts; on a CPU, how many operators are called.

    A profiler that ran once goes on costing time: ask when all else has been measured.
    """
    runner, request = new_runner(network, 1, 40), request_of(network, 16, 20)
    runner.prefill([request])
    for _ in range(WARM_UP_STEPS):
        runner.decode([request])
    is_cuda = bench.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if is_cuda else ProfilerActivity.CPU]) as profiler:
        runner.decode([request])
        wait(bench.device)
    wanted = DeviceType.CUDA if is_cuda else DeviceType.CPU
    return sum(event.device_type == wanted for event in profiler.events() or [])


def measure_prompts(bench: Bench, network: Any, bits: int) -> None:
    """One prompt, all but its last id."""
    for length in bench.plan.prompts:
        # The first one is a warm-up.
        seconds = statistics.median(prompt_times(bench, network, length)[1:])
        parts = parts_of_prompt(network, length)
        bench.add("prompt", seconds, parts, bits=bits, length=length, tokens_per_s=length / seconds)


def prompt_times(bench: Bench, network: Any, length: int) -> list[float]:
    release(bench.device)
    runner, times = new_runner(network, 1, length + 1), []
    for _ in range(5):
        request = request_of(network, length, 1)
        wait(bench.device)
        begun = time.perf_counter()
        runner.prefill([request])
        wait(bench.device)
        times.append(time.perf_counter() - begun)
        assert request.finish_reason is None, "a prompt failed"
        request.end("stop")
    return times


# --- the original's way ---


def measure_original(bench: Bench, network: Any, bits: int) -> None:
    """Every packed weight written out for every token, one kernel after the other, no graph: as the original does."""
    if bits == 16:
        return
    release(bench.device)
    context = bench.plan.contexts[0]
    runner, request = Runner(BatchDecoder(network)), request_of(network, context, ORIGINAL_ANSWER)
    with weights_written_out(network), sdpa_kernel(PLANLESS):
        runner.prefill([request])
        seconds = time_of(lambda: runner.decode([request]), bench.device, repeats=5, warm_ups=2)
    assert request.finish_reason is None, "a request failed"
    bench.add(
        "original",
        seconds,
        parts_of_step(network, 1, context),
        bits=bits,
        batch=1,
        context=context,
        tokens_per_s=1 / seconds,
    )


@contextmanager
def weights_written_out(network: Any) -> Iterator[None]:
    """Products of a network write their weight out first: on a card by the kernel for it, elsewhere by the formulas."""

    def written_out(layer: QuantizedLinear, x: Tensor) -> Tensor:
        return linear_written_out(x, layer.weight, layer.weight_scale, layer.bits, layer.bias, gelu=False)

    layers = [layer for layer in network.modules() if isinstance(layer, QuantizedLinear)]
    for layer in layers:
        layer.forward = partial(written_out, layer)
    try:
        # On a CPU the fused kernels of a block would not ask the layers. On a card the reference has no extraction.
        with kernels.use("reference") if network.device.type != "cuda" else nullcontext():
            yield
    finally:
        for layer in layers:
            del layer.forward


# --- many requests ---


def measure_chats(bench: Bench, network: Any, bits: int) -> None:
    """The same short chats together and one alone, from the first prompt to the last id, through the engine."""
    count, num_prompt, num_new = bench.plan.chats
    for batch in (1, count):
        work = [(prompt_of(network, num_prompt, seed), greedy(num_new)) for seed in range(batch)]
        rate = warm_rate(bench, network, work)
        bench.add(
            "chats",
            batch * num_new / rate,
            parts_of_step(network, batch, num_prompt + num_new // 2, num_new),
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
    with warm_engine(bench, network, slots, work[: slots // 2]) as engine:
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


@contextmanager
def warm_engine(bench: Bench, network: Any, slots: int, work: list[Any]) -> Iterator[Engine]:
    """An engine that has captured its steps and has answered such requests before."""
    release(bench.device)
    with closing(
        Engine(BatchDecoder(network), Letters(), max_running=slots, max_waiting=10_000, uses_graphs=True)
    ) as engine:
        engine.warm_up()
        rate_of(engine, work)
        yield engine


def warm_rate(bench: Bench, network: Any, work: list[Any]) -> float:
    """Tokens per second of requests that all have a place at once."""
    with warm_engine(bench, network, len(work), work) as engine:
        return rate_of(engine, work)


def rate_of(engine: Engine, work: list[Any]) -> float:
    """Tokens per second of all requests, submitted at once."""
    begun = time.perf_counter()
    handles = [engine.submit(*one) for one in work]
    return sum(handle.result().completion_tokens for handle in handles) / (time.perf_counter() - begun)


MEASURES: dict[str, Callable[[Bench, Any, int], None]] = {
    "step": measure_steps,
    "prompt": measure_prompts,
    "original": measure_original,
    "chats": measure_chats,
    "mixed": measure_mixed,
}
