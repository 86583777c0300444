"""What sharing the network is worth: one request, several at once, and requests of mixed lengths that come and go.

    python -m benchmarks.batching                        a random network of 0.7 GB in bfloat16, about two minutes
    python -m benchmarks.batching --dtype fp32           the same in float32, 1.3 GB
    python -m benchmarks.batching --bits 4 --layers 12   packed weights

The weights do not fit into a processor's cache, so a step of one request is spent on reading them, and further
requests share that. Rates are tokens of answers per second, prompts included in the time; those of mixed lengths are
taken as long as requests wait, and, for comparison, of the same requests in groups that wait for their longest. All
figures come from one process and take turns; each is a median. Prints a table, and one JSON line last.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from chatglm.devices import DTYPES
from chatglm.engine import Engine
from chatglm.engine.decoder import BatchDecoder
from chatglm.engine.solo import stream_alone
from chatglm.generation.config import GenerationConfig
from chatglm.models import family_of

SIZES = {"vocab_size": 32000, "hidden_size": 2048, "inner_hidden_size": 8192, "num_attention_heads": 16}
SPECIALS = {"pad_token_id": 3, "mask_token_id": 31990, "gmask_token_id": 31991, "bos_token_id": 31992}
TOGETHER = (1, 2, 4, 8, 16)
SLOTS = 16
PROMPT, ANSWER = 32, 64
# Requests of the mixed run: as many tokens on average as those of the others, from an eighth of that to nearly twice.
MIXED_REQUESTS = 64
SPREAD = 7 / 8

Work = tuple[list[int], GenerationConfig]


class Letters:
    """A tokenizer that spells every id with one letter."""

    clean_up_tokenization_spaces = False
    leading_spaces = "keep"

    def surface(self, token_id: int) -> str:
        return "x"


def random_network(num_layers: int, dtype: torch.dtype, bits: int) -> Any:
    family = family_of({"model_type": "chatglm"})
    config = family.config_class(**SIZES, **SPECIALS, eos_token_id=31993, num_layers=num_layers)
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32 if bits else dtype)
    try:
        network = family.model_class(config).eval()
    finally:
        torch.set_default_dtype(default)
    return network.quantize(bits) if bits else network


def work(num_prompt: int, num_new: int, seed: int) -> Work:
    """A prompt of so many random ids whose answer has exactly so many."""
    ids = random.Random(seed).choices(range(10, 31000), k=num_prompt - 2)
    config = GenerationConfig(do_sample=False, max_new_tokens=num_new, min_new_tokens=num_new)
    return [*ids, SPECIALS["gmask_token_id"], SPECIALS["bos_token_id"]], config


def mixed_work() -> list[Work]:
    """Lengths evenly spread around those of the others, in random order."""
    chance = random.Random(0)
    factors = [1 - SPREAD + 2 * SPREAD * (n + 0.5) / MIXED_REQUESTS for n in range(MIXED_REQUESTS)]
    prompts, answers = ([round(length * factor) for factor in factors] for length in (PROMPT, ANSWER))
    chance.shuffle(prompts)
    chance.shuffle(answers)
    return [work(*lengths, seed) for seed, lengths in enumerate(zip(prompts, answers, strict=True))]


def rate_of_loop(network: Any, one: Work) -> float:
    begun = time.perf_counter()
    last = list(stream_alone(BatchDecoder(network), Letters(), *one))[-1]
    return last.completion_tokens / (time.perf_counter() - begun)


def rate_of_groups(engine: Engine, groups: list[list[Work]]) -> float:
    """One group after the other, each from its first prompt to its last token."""
    begun, num_tokens = time.perf_counter(), 0
    for group in groups:
        handles = [engine.submit(*one) for one in group]
        num_tokens += sum(handle.result().completion_tokens for handle in handles)
    return num_tokens / (time.perf_counter() - begun)


def rate_while_waiting(engine: Engine, all_work: list[Work]) -> float:
    """All at once, until the last of them has found a slot."""
    begun, before = time.perf_counter(), engine.stats().tokens_total
    handles = [engine.submit(*one) for one in all_work]
    while engine.stats().waiting:
        time.sleep(0.02)
    rate = (engine.stats().tokens_total - before) / (time.perf_counter() - begun)
    for handle in handles:
        handle.result()
    return rate


def measure(network: Any, num_rounds: int, say: Callable[[str], None]) -> dict[str, float]:
    """Median tokens per second of every way."""
    engine = Engine(BatchDecoder(network), Letters(), max_running=SLOTS, max_waiting=MIXED_REQUESTS)
    same, mixed = [work(PROMPT, ANSWER, seed) for seed in range(SLOTS)], mixed_work()
    groups = [mixed[start : start + SLOTS] for start in range(0, MIXED_REQUESTS, SLOTS)]
    runs: dict[str, Callable[[], float]] = {"decode loop, 1": lambda: rate_of_loop(network, same[0])}
    runs |= {f"engine, {count}": lambda count=count: rate_of_groups(engine, [same[:count]]) for count in TOGETHER}
    runs["engine, mixed lengths"] = lambda: rate_while_waiting(engine, mixed)
    runs["mixed lengths in groups"] = lambda: rate_of_groups(engine, groups)
    rate_of_groups(engine, [[work(PROMPT, 4, 0)] * SLOTS])  # warms up
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(num_rounds):
        say(f"round {number + 1} of {num_rounds}")
        for name, run in runs.items():
            rates[name].append(run())
    engine.close()
    return {name: statistics.median(of_rounds) for name, of_rounds in rates.items()}


def ratios(rates: dict[str, float]) -> dict[str, float]:
    full = rates[f"engine, {SLOTS}"]
    return {
        f"{SLOTS} at once / 1": full / rates["engine, 1"],
        f"mixed lengths / {SLOTS} of equal length": rates["engine, mixed lengths"] / full,
        "mixed lengths / the same in groups": rates["engine, mixed lengths"] / rates["mixed lengths in groups"],
        "engine / decode loop, 1 request": rates["engine, 1"] / rates["decode loop, 1"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--bits", type=int, choices=(4, 8), help="pack the weights; the rest is float32 then")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    network = random_network(args.layers, DTYPES[args.dtype], args.bits or 0)
    rates = measure(network, args.rounds, lambda line: print(line, file=sys.stderr))
    for name, rate in rates.items():
        print(f"{name:40}{rate:10.1f} tokens/s")
    for name, ratio in ratios(rates).items():
        print(f"{name:40}{ratio:10.2f}")
    result = {
        "layers": args.layers,
        "dtype": args.dtype,
        "bits": args.bits,
        "weights_gb": sum(parameter.nbytes for parameter in network.parameters()) / 1e9,
        "threads": torch.get_num_threads(),
        "prompt_tokens": PROMPT,
        "answer_tokens": ANSWER,
        "tokens_per_s": rates,
        "ratios": ratios(rates),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
