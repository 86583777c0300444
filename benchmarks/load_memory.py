"""How much host memory and time loading takes: makes a random checkpoint in shards, loads it in a fresh process.

    python -m benchmarks.load_memory                                   # about 2 GB in 8 .bin shards
    python -m benchmarks.load_memory --layers 2 --hidden-size 1024 --shards 4 --dtypes bf16

The checkpoint has the architecture of ChatGLM-6B (its vocabulary included, both embedding tables stored and equal) and
is deleted afterwards. The floor is the network in its final type; allowed above it are 60 MB for the tokenizer, code
pages and a buffer. Prints a table, and one JSON line last. Linux only (reads /proc/self/status).
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from chatglm.checkpoints import list_tensors
from chatglm.checkpoints.validate.expected_weights import expected_shapes
from chatglm.models import family_of
from tests.folders import tiny_config, write_config, write_tokenizer

DTYPE_SIZES = {"fp32": 4, "bf16": 2, "fp16": 2}
ALLOWED_BYTES = 60 * 10**6


def make_checkpoint(folder: Path, args: argparse.Namespace) -> None:
    """Write a float16 checkpoint of the asked size, in about equal shards with an index."""
    config = tiny_config(
        vocab_size=args.vocab_size,
        hidden_size=args.hidden_size,
        inner_hidden_size=4 * args.hidden_size,
        num_layers=args.layers,
        num_attention_heads=args.hidden_size // 64,
        max_sequence_length=2048,
    )
    write_config(folder, config)
    write_tokenizer(folder)
    family = family_of({"model_type": "chatglm"})
    shapes = expected_shapes(family, family.config(config))
    suffix, stem = ("safetensors", "model") if args.format == "safetensors" else ("bin", "pytorch_model")
    weight_map = {}
    for number, names in enumerate(split_evenly(shapes, args.shards), start=1):
        file = f"{stem}-{number:05d}-of-{args.shards:05d}.{suffix}"
        tensors = {name: random_tensor(name, shapes[name]) for name in names}
        save_file(tensors, folder / file) if suffix == "safetensors" else torch.save(tensors, folder / file)
        weight_map |= dict.fromkeys(names, file)
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")


def split_evenly(shapes: dict[str, tuple[int, ...]], count: int) -> list[list[str]]:
    """Names in order, cut into `count` parts whose sizes are as equal as whole tensors allow."""
    total, done, parts = sum(map(math.prod, shapes.values())), 0, [[] for _ in range(count)]
    for name, shape in shapes.items():
        parts[min(count - 1, (done + math.prod(shape) // 2) * count // total)].append(name)
        done += math.prod(shape)
    return parts


def random_tensor(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Random float16 values: one random block repeated, since a gigabyte of fresh ones takes long to draw."""
    seed = 0 if ".layers." not in name and name.endswith(".weight") else len(name)
    block = torch.randn(1_000_003, generator=torch.Generator().manual_seed(seed)).mul_(0.02).half()
    size = math.prod(shape)
    return block.repeat(-(-size // block.numel()))[:size].reshape(shape).clone()


def measure(folder: str, dtype: str) -> dict[str, Any]:
    """Load in this process; peak resident memory (bytes) above that of the imports, and seconds."""
    from chatglm.loading import load
    from chatglm.models.chatglm import network, tokenizer  # noqa: F401  (imports are not measured)

    before = resident("VmRSS")
    start = time.perf_counter()
    loaded = load(folder, device="cpu", dtype=dtype, wraps=False)
    seconds = time.perf_counter() - start
    size = sum(parameter.nbytes for parameter in loaded.model.parameters())
    assert all(parameter.dtype == loaded.model.dtype for parameter in loaded.model.parameters())
    peak, after = resident("VmHWM"), resident("VmRSS")
    return {
        "dtype": dtype,
        "model_bytes": size,
        "peak_bytes": peak - before,
        "after_bytes": after - before,
        "imports_bytes": before,
        "seconds": round(seconds, 2),
    }


def resident(field: str) -> int:
    """VmRSS (now) or VmHWM (peak) of this process, in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {field} in /proc/self/status")


def main() -> None:
    """Make, measure, print, delete."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--vocab-size", type=int, default=130528)
    parser.add_argument("--hidden-size", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--format", choices=["bin", "safetensors"], default="bin")
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPE_SIZES), default=["fp16", "bf16"])
    parser.add_argument("--measure", metavar="FOLDER", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure, args.dtypes[0])))
        return
    with tempfile.TemporaryDirectory(prefix="chatglm-load-") as name:
        folder = Path(name)
        make_checkpoint(folder, args)
        files = [path.stat().st_size for path in folder.glob("*model-*")]
        results = []
        for dtype in args.dtypes:
            command = [sys.executable, "-m", "benchmarks.load_memory", "--measure", name, "--dtypes", dtype]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            results.append(json.loads(output.splitlines()[-1]))
        num_tensors = len(list_tensors(folder))
    summary = {
        "format": args.format,
        "shards": args.shards,
        "tensors": num_tensors,
        "file_bytes": sum(files),
        "largest_shard_bytes": max(files),
        "runs": results,
    }
    print_table(summary)
    print(json.dumps(summary))


def print_table(summary: dict[str, Any]) -> None:
    """The numbers in GB, and the peak as a share of what is allowed."""
    shard = summary["largest_shard_bytes"]
    size = summary["file_bytes"]
    print(f"{summary['format']}: {size / 1e9:.2f} GB in {summary['shards']} shards, largest {shard / 1e9:.2f} GB")
    print("dtype  network GB  peak GB  allowed GB  peak/allowed  after GB  seconds")
    for run in summary["runs"]:
        model, peak, after = (run[f"{name}_bytes"] / 1e9 for name in ("model", "peak", "after"))
        allowed = model + ALLOWED_BYTES / 1e9
        print(
            f"{run['dtype']:5}  {model:10.2f}  {peak:7.2f}  {allowed:10.2f}  {peak / allowed:12.2f}  {after:8.2f}  "
            f"{run['seconds']:7.2f}"
        )


if __name__ == "__main__":
    main()
