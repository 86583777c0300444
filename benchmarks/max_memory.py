"""What --max-memory keeps to and costs: one random checkpoint answered with and without a limit, in fresh processes.

    python -m benchmarks.max_memory                                       # 600 MB of float16 weights, limit 200 MB
    python -m benchmarks.max_memory --hidden-size 4096 --layers 8 --bits 4 --limit 400M --dtype fp32

The peak is that of the process above what it took after its imports: weights, buffers, the KV cache of a short
conversation, activations. Answers must be the same token for token. Prints a table, and one JSON line last. Linux only
(reads /proc/self/status).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.load_memory import resident
from benchmarks.random_model import write_folder
from chatglm.sizes import format_bytes, parse_bytes

QUESTION = "hello the quick brown fox"


def measure(folder: str, dtype: str, limit: str | None, tokens: int) -> dict[str, Any]:
    """Load and answer in this process; peak above the imports (bytes), seconds, a digest of logits and answer."""
    import torch

    from chatglm.models.chatglm import network, tokenizer  # noqa: F401  (imports are not measured)
    from chatglm.pipeline import load_pipeline

    before = resident("VmRSS")
    start = time.perf_counter()
    with load_pipeline(folder, device="cpu", dtype=dtype, max_memory=limit) as pipe:
        loaded = time.perf_counter()
        length = {"max_new_tokens": tokens, "min_new_tokens": tokens}
        answer, _ = pipe.chat(QUESTION, **length, temperature=1.5, top_k=0, top_p=1.0, seed=0)
        answered = time.perf_counter()
        config = pipe.model.config
        with torch.inference_mode():
            logits = pipe.model(torch.tensor([[200, 201, config.gmask_token_id, config.bos_token_id]]))
        digest = hashlib.sha256(logits.float().numpy().tobytes() + answer.encode()).hexdigest()
    return {
        "limit": limit,
        "peak_bytes": resident("VmHWM") - before,
        "imports_bytes": before,
        "load_seconds": round(loaded - start, 2),
        "seconds_per_token": round((answered - loaded) / tokens, 3),
        "digest": digest,
    }


def main() -> None:
    """Write, measure, print, delete."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--hidden-size", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--bits", type=int, choices=(0, 4, 8), default=0)
    parser.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), default="bf16")
    parser.add_argument("--limit", default="200M")
    parser.add_argument("--tokens", type=int, default=6)
    parser.add_argument("--measure", metavar="FOLDER", help=argparse.SUPPRESS)
    parser.add_argument("--unlimited", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        limit = None if args.unlimited else args.limit
        print(json.dumps(measure(args.measure, args.dtype, limit, args.tokens)))
        return
    with tempfile.TemporaryDirectory(prefix="chatglm-limit-") as name:
        sizes = {"vocab_size": 1000, "hidden_size": args.hidden_size, "inner_hidden_size": 4 * args.hidden_size}
        heads = args.hidden_size // 64
        write_folder(Path(name), args.layers, **sizes, num_attention_heads=heads, quantization_bit=args.bits)
        size = (Path(name) / "model.safetensors").stat().st_size
        options = ["--dtype", args.dtype, "--limit", args.limit, "--tokens", str(args.tokens)]
        command = [sys.executable, "-m", "benchmarks.max_memory", "--measure", name, *options]
        runs = [
            json.loads(subprocess.run([*command, *more], check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])
            for more in (["--unlimited"], [])
        ]
    summary = {
        "file_bytes": size,
        "limit_bytes": parse_bytes(args.limit),
        "is_same": runs[0]["digest"] == runs[1]["digest"],
        "runs": runs,
    }
    print_table(summary)
    print(json.dumps(summary))


def print_table(summary: dict[str, Any]) -> None:
    """The two runs, and whether they agree."""
    same = "the same" if summary["is_same"] else "DIFFERENT"
    print(f"{format_bytes(summary['file_bytes'])} of weights; logits and tokens are {same}")
    print("limit      peak  peak/limit  load s  s/token")
    for run in summary["runs"]:
        share = f"{run['peak_bytes'] / summary['limit_bytes']:10.2f}" if run["limit"] else " " * 10
        figures = f"{run['load_seconds']:6.2f}  {run['seconds_per_token']:7.3f}"
        print(f"{run['limit'] or 'none':6} {format_bytes(run['peak_bytes']):>8}  {share}  {figures}")


if __name__ == "__main__":
    main()
