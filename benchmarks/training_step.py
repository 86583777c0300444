"""What a P-Tuning step takes: as it is, with activations computed twice, and as the same loop written naively.

    python -m benchmarks.training_step [--hidden 512 --layers 8 --tokens 256 --batch 8]

naive: every layer makes the whole matrix of attention probabilities and keeps it for the backward pass, as it keeps
all other activations. Each variant runs in a process of its own, so that its peak memory is its own. Random weights,
CPU, float32.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
VARIANTS = ("naive", "kept", "recomputed")
MEGABYTE = 10**6


def measure(variant: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Median seconds of a step, and megabytes that steps take beside the network."""
    sys.path.insert(0, str(ROOT))
    import torch

    from chatglm.models import family_of
    from chatglm.training.arguments import ModelArguments
    from chatglm.training.recipes import make_recipe

    torch.manual_seed(0)
    family = family_of({"model_type": "chatglm"})
    config = family.config_class(
        vocab_size=1000,
        hidden_size=arguments.hidden,
        inner_hidden_size=4 * arguments.hidden,
        num_layers=arguments.layers,
        num_attention_heads=arguments.hidden // 64,
        max_sequence_length=2048,
        bos_token_id=990,
        eos_token_id=991,
        gmask_token_id=992,
        mask_token_id=993,
        pad_token_id=3,
    )
    network: Any = family.model_class(config)
    asked = ModelArguments(pre_seq_len=arguments.prefix, recompute="on" if variant == "recomputed" else "off")
    make_recipe("ptuning", network, "random", asked)
    network.train()
    ids = torch.randint(10, 900, (arguments.batch, arguments.tokens))
    half = arguments.tokens // 2
    ids[:, half], ids[:, half + 1] = config.gmask_token_id, config.bos_token_id
    labels = ids.masked_fill(torch.arange(arguments.tokens) <= half, -100)
    before = _peak()
    seconds = []
    for _ in range(arguments.steps):
        began = time.perf_counter()
        network(input_ids=ids, labels=labels, output_attentions=variant == "naive").loss.backward()
        network.zero_grad()
        seconds.append(time.perf_counter() - began)
    return {"seconds": statistics.median(seconds), "megabytes": (_peak() - before) / MEGABYTE}


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("hidden", 512), ("layers", 8), ("tokens", 256), ("batch", 8), ("prefix", 128), ("steps", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--variant", choices=VARIANTS, help="measure this one alone, and print JSON")
    arguments = parser.parse_args()
    if arguments.variant:
        print(json.dumps(measure(arguments.variant, arguments)))
        return
    base: dict[str, float] = {}
    for variant in VARIANTS:
        command = [sys.executable, __file__, *sys.argv[1:], "--variant", variant]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        base = base or found
        ratios = [found[name] / base[name] for name in ("seconds", "megabytes")]
        print(
            f"{variant:<11} {found['seconds']:6.2f} s a step ({ratios[0]:.2f} of naive)"
            f" {found['megabytes']:7.0f} MB ({ratios[1]:.2f} of naive)",
            flush=True,
        )


if __name__ == "__main__":
    main()
