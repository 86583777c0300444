"""How fast ChatGLM-6B runs on this CPU with quantized weights, beside what the processor could do at most.

    python -m benchmarks.cpu                    28 layers, int4, a few minutes; needs 8 GB of memory and 4 GB of disk
    python -m benchmarks.cpu --layers 2         quick; all figures but those of the whole model
    python -m benchmarks.cpu --bits 8 --group-size 0 --kernels native exact

Weights are random: speed does not depend on them. All kernels run on the same weights in the same process, taking
turns, and the read loop is measured beside each of them, since the memory of a shared machine is not always equally
fast: trust the ratios. Prints tables, and one JSON line last.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.ceilings import Ceilings
from benchmarks.random_model import write_folder
from chatglm import kernels
from chatglm.engine.decoder import BatchDecoder
from chatglm.quantization.layers import QuantizedLinear

CONTEXTS = (32, 512)
PROMPTS = (128, 512)
DECODE_STEPS = 8
ROUNDS = 5


class Request:
    """One sequence on a network: a random prompt of `length` ids, then token after token."""

    def __init__(self, model: Any, length: int) -> None:
        self.decoder = BatchDecoder(model)
        ids = torch.randint(100, 200, (1, length), generator=torch.Generator().manual_seed(0))
        ids[0, -2:] = torch.tensor([model.config.gmask_token_id, model.config.bos_token_id])
        self.ids = ids
        self.layout = self.decoder.prompt_layout(ids)
        self.cache = self.decoder.new_cache(length + 64)

    @torch.inference_mode()
    def prefill(self) -> float:
        """Seconds for the prompt."""
        start = time.perf_counter()
        self.decoder.prefill(self.ids, self.layout, self.cache)
        return time.perf_counter() - start

    @torch.inference_mode()
    def decode(self, num_steps: int = DECODE_STEPS) -> float:
        """Median seconds of a token."""
        times = []
        for _ in range(num_steps):
            start = time.perf_counter()
            logits = self.decoder.decode(self.ids[:, -1:], [self.layout], [self.cache])
            assert logits.isfinite().all()
            times.append(time.perf_counter() - start)
        return statistics.median(times)


def bytes_per_token(model: Any, context: int) -> int:
    """Bytes that a decode step must read: every packed weight and scale, the head, the cache; not the embedding."""
    layers = sum(parameter.nbytes for parameter in model.transformer.layers.parameters())
    head = sum(parameter.nbytes for parameter in model.lm_head.parameters())
    cache = 2 * model.config.num_layers * model.config.hidden_size * context * 2
    return layers + head + cache


def operations_per_prompt(model: Any, length: int) -> int:
    """Multiplications and additions in the packed products of a prompt; the head runs for its last position only."""
    packed = [layer for layer in model.transformer.layers.modules() if isinstance(layer, QuantizedLinear)]
    return 2 * length * sum(layer.in_features * layer.out_features for layer in packed)


def measure_decode(model: Any, names: list[str], ceilings: Ceilings) -> dict[str, Any]:
    """Tokens per second, the fraction of the read loop and, if they are among them, how many times as fast the native
    kernels were in the same round, per kernel and context; medians over rounds.
    """
    rates: dict[str, list[float]] = {}
    fractions: dict[str, list[float]] = {}
    for context in CONTEXTS:
        for _ in range(ROUNDS):
            for name in names:
                # The way of the original takes seconds for each token: once is enough.
                is_slow = name == "reference"
                if is_slow and f"{name} {context}" in rates:
                    continue
                with kernels.use(name):
                    request = Request(model, context)
                    with kernels.use("native"):
                        request.prefill()
                    ceiling = ceilings.read_bytes_per_second()
                    seconds = request.decode(1 if is_slow else DECODE_STEPS)
                key = f"{name} {context}"
                rates.setdefault(key, []).append(1 / seconds)
                fractions.setdefault(key, []).append(bytes_per_token(model, context) / seconds / ceiling)
    table = {
        key: {"tokens_per_s": statistics.median(rates[key]), "of_read_loop": statistics.median(fractions[key])}
        for key in rates
    }
    for name, context in itertools.product(names if "native" in names else (), CONTEXTS):
        pairs = zip(rates[f"native {context}"], rates[f"{name} {context}"], strict=False)  # the slow one has one round
        table[f"{name} {context}"]["native_times"] = statistics.median(ours / theirs for ours, theirs in pairs)
    return table


def measure_prefill(model: Any, names: list[str], ceilings: Ceilings) -> dict[str, Any]:
    """Tokens per second and the fraction of the int8 peak, per kernel and length; native ones: medians over rounds."""
    result: dict[str, Any] = {}
    for length in PROMPTS:
        for name in names:
            if name in ("reference", "exact") and length != PROMPTS[0]:
                continue  # minutes, and per token no different
            rates, fractions = [], []
            for _ in range(ROUNDS if name == "native" else 1):
                with kernels.use(name):
                    peak = ceilings.int8_operations_per_second()
                    seconds = Request(model, length).prefill()
                rates.append(length / seconds)
                fractions.append(operations_per_prompt(model, length) / seconds / peak if peak else float("nan"))
            result[f"{name} {length}"] = {
                "tokens_per_s": statistics.median(rates),
                "of_int8_peak": statistics.median(fractions),
            }
    return result


def measure_start(folder: str, is_mapped: bool) -> dict[str, Any]:
    """In a fresh process: seconds to import, to load, and to the first token; peak memory at a context of 32."""
    start = time.perf_counter()
    from chatglm.loading import load
    from chatglm.models import family_of

    _ = (
        family_of({"model_type": "chatglm"}).model_class,
        family_of({"model_type": "chatglm"}).tokenizer_class,
        kernels.backend_name(),
    )
    imported = time.perf_counter()
    model = load(folder, device="cpu", mmap=is_mapped, wraps=False).model
    loaded = time.perf_counter()
    request = Request(model, 32)
    request.prefill()
    request.decode(1)
    first = time.perf_counter()
    request.decode(16)
    return {
        "import_s": imported - start,
        "load_s": loaded - imported,
        "load_and_first_token_s": first - imported,
        "peak_rss_gb": peak_rss() / 1e9,
    }


def peak_rss() -> int:
    """Bytes; Linux counts in kilobytes, macOS in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def in_fresh_process(folder: Path, is_mapped: bool) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.cpu", "--start", str(folder), *(["--mmap"] if is_mapped else [])]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def drop_from_cache(folder: Path) -> None:
    """Ask the system to forget the files, so that the next read is from the disk (Linux)."""
    if hasattr(os, "posix_fadvise"):
        with (folder / "model.safetensors").open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure_starts(folder: Path) -> dict[str, Any]:
    """Cold and warm, read and mapped."""
    result = {}
    for way, is_mapped in (("read", False), ("mapped", True)):
        drop_from_cache(folder)
        result[f"{way}, cold"] = in_fresh_process(folder, is_mapped)
        result[f"{way}, warm"] = in_fresh_process(folder, is_mapped)
    return result


def print_table(title: str, rows: dict[str, dict[str, float]]) -> None:
    columns = list(next(iter(rows.values())))
    print(f"\n{title:24}" + "".join(f"{column:>24}" for column in columns), flush=True)
    for name, row in rows.items():
        print(f"{name:24}" + "".join(f"{row[column]:24.3g}" for column in columns))


def run(args: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """Write the folder, measure, print tables as they are complete, delete the folder."""
    from chatglm.loading import load

    with tempfile.TemporaryDirectory(prefix="chatglm-cpu-") as name:
        folder = Path(name)
        keys = {"quantization_bit": args.bits, "quantization_embedding_bit": 8}
        if args.group_size:
            keys["quantization_group_size"] = args.group_size
        say(f"writing random weights to {folder}")
        write_folder(folder, args.layers, **keys)
        say("starting fresh processes")
        starts = measure_starts(folder)
        print_table("start", starts)
        say("loading")
        model = load(folder, device="cpu", wraps=False).model
        ceilings = Ceilings()
        read, peak = ceilings.read_bytes_per_second(), ceilings.int8_operations_per_second()
        print(f"\n{'read loop':24}{read / 1e9:24.1f} GB/s\n{'int8 peak':24}{peak / 1e9:24.0f} GOP/s")
        say("decoding")
        decode = measure_decode(model, args.kernels, ceilings)
        print_table("decode at context", decode)
        say("prompts")
        prefill = measure_prefill(model, args.kernels, ceilings)
        print_table("prefill of", prefill)
    return {
        "layers": args.layers,
        "bits": args.bits,
        "group_size": args.group_size,
        "threads": torch.get_num_threads(),
        "read_gb_per_s": read / 1e9,
        "int8_gops": peak / 1e9,
        "start": starts,
        "decode": decode,
        "prefill": prefill,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--bits", type=int, choices=(4, 8), default=4)
    parser.add_argument("--group-size", type=int, choices=(0, 32, 64, 128), default=0)
    parser.add_argument("--kernels", nargs="+", default=["native", "exact", "torch", "reference"])
    parser.add_argument("--start", metavar="FOLDER", help=argparse.SUPPRESS)
    parser.add_argument("--mmap", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.start:
        print(json.dumps(measure_start(args.start, args.mmap)))
        return
    result = run(args, lambda sentence: print(sentence, file=sys.stderr))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
