"""What each of two processes does for test_spread.py; torchrun starts it as a module with the folders to load.

Each answers with the model that it holds a part of and with the whole one, and writes both to <rank>.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from chatglm import kernels
from chatglm.pipeline import Pipeline, load_pipeline
from tests.families import cases
from tests.families.conformance.asking import QUERIES, cached_logits, error, prompt_ids, tokens_with

NUM_RANKS = 2
LOADED: dict[str, dict[str, Any]] = {"float": {}, "int4": {"quantize": 4}, "prefix": {}}


def seen_of(sharded: Pipeline, whole: Pipeline) -> dict[str, Any]:
    spec, ids = whole.model.spec, [*prompt_ids(whole), 7, 8, 9]
    steps = cached_logits(sharded, ids, 3)
    sizes = {
        linear.name: [
            pipe.model.get_submodule(f"{spec.layers}.0.{linear.name}").weight.numel() for pipe in (sharded, whole)
        ]
        for linear in spec.linears
    }
    return {
        "error": error(steps, cached_logits(whole, ids, 3)),
        "logits": steps.flatten()[:50].tolist(),
        "answers": [tokens_with(pipe, QUERIES[:1]) for pipe in (sharded, whole)],
        "sizes": sizes,
    }


def main() -> None:
    torch.set_num_threads(1)
    cases.register()
    root, seen = Path(sys.argv[1]), {}
    with kernels.use("reference"):
        for name, options in LOADED.items():
            folder = root / ("prefix" if name == "prefix" else "plain")
            options = {"device": "cpu", "dtype": "fp32", **options}
            with (
                load_pipeline(folder, **options) as whole,
                load_pipeline(folder, tensor_parallel=True, **options) as sharded,
            ):
                seen[name] = seen_of(sharded, whole)
    (root / f"{dist.get_rank()}.json").write_text(json.dumps(seen), encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
