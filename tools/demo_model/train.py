"""Trains the demo model within a given number of minutes, on the CPU.

    OMP_WAIT_POLICY=passive python -m tools.demo_model.train --minutes 86 --compile

Killed or interrupted, the same command goes on where the last checkpoint was written.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from tools.demo_model.conversation import NAME, read_jsonl
from tools.demo_model.encoding import Batch, Codec, Encoded, collate, encode_sample, grouped
from tools.demo_model.network import HalfTwin, build, configuration, save
from tools.demo_model.samples import DATA_DIR, Mix, fingerprint
from tools.demo_model.team import Team, run
from tools.demo_model.tokenizer import MODEL_FILE, train_tokenizer

CHUNK = 20_000  # samples drawn, sorted and shuffled together
TOKENIZER_SAMPLES = 40_000
LONGEST = 480  # tokens; longer samples are left out
WARMUP_STEPS = 150
LAST_SHARE = 0.05  # of the learning rate, at the end
LOG_SECONDS, CHECKPOINT_SECONDS, VALIDATION_SECONDS = 30.0, 240.0, 240.0


@dataclass
class Progress:
    """Where the run is: enough to go on after an interruption."""

    elapsed: float = 0.0
    step: int = 0
    tokens: int = 0
    chunk: int = 0
    batch: int = 0  # batches of this chunk already used


def prepare(args: argparse.Namespace) -> None:
    """Do what must be done once, before the workers start: the folders and the vocabulary."""
    Path(args.work).mkdir(parents=True, exist_ok=True)
    if not (Path(args.out) / MODEL_FILE).exists():
        prepare_tokenizer(Mix(DATA_DIR, found(args.ood_dir)), Path(args.out), args.seed)


def found(folder: str) -> Path | None:
    """Return the folder if there is one."""
    return Path(folder) if Path(folder).exists() else None


def prepare_tokenizer(mix: Mix, folder: Path, seed: int) -> None:
    """Train the vocabulary on a draw of the mix and on every phrasing and answer."""
    texts = [text for sample in mix.chunk(seed, -1, TOKENIZER_SAMPLES) for text in sample.turns[-1]]
    texts += [question for row in mix.intents for question in row["questions"]]
    texts += [text for row in mix.intents for text in row["answers"]]
    train_tokenizer(texts, folder)


def stream(mix: Mix, codec: Codec, args: argparse.Namespace, progress: Progress, rank: int) -> Iterator[Batch]:
    """Yield this worker's batches for ever, going on at `progress`, and keep it up to date."""
    seed, workers = args.seed, args.workers
    while True:
        encoded = [encode_sample(codec, sample.turns) for sample in mix.chunk(seed, progress.chunk, CHUNK)]
        encoded = [sample for sample in encoded if len(sample.ids) <= LONGEST]
        order = random.Random(f"{seed}:{progress.chunk}:batches")
        parts = grouped(encoded, args.batch_tokens // workers, order)
        for i in range(progress.batch, len(parts) // workers):
            progress.batch = i + 1
            yield collate(parts[i * workers + rank], codec.pad)
        progress.chunk, progress.batch = progress.chunk + 1, 0


def loss_of(model: Any, batch: Batch, transformer: Any = None) -> torch.Tensor:
    """Return the weighted cross entropy; logits are made for the places to be predicted only."""
    network = model.transformer if transformer is None else transformer
    hidden = network(batch.input_ids, batch.position_ids, batch.visible)
    logits = model.lm_head(hidden.flatten(0, 1)[batch.rows])
    return (F.cross_entropy(logits.float(), batch.targets, reduction="none") * batch.weights).sum()


@torch.no_grad()
def validate(model: Any, held: list[Encoded], codec: Codec) -> float:
    """Return the cross entropy per answer token on held-out phrasings, unweighted."""
    total = count = 0.0
    for group in grouped(held, 3000, random.Random(0)):
        batch = collate(group, codec.pad)
        even = torch.full_like(batch.weights, 1.0)
        total += loss_of(
            model, Batch(batch.input_ids, batch.position_ids, batch.visible, batch.rows, batch.targets, even)
        ).item()
        count += len(batch.targets)
    return total / count


def learning_rate_share(progress: Progress, seconds: float) -> float:
    """Warm up over some steps, then a cosine over the time there is."""
    warm = min(1.0, (progress.step + 1) / WARMUP_STEPS)
    done = min(1.0, progress.elapsed / seconds)
    return warm * (LAST_SHARE + (1 - LAST_SHARE) * 0.5 * (1 + math.cos(math.pi * done)))


def save_checkpoint(file: Path, model: Any, optimiser: torch.optim.Optimizer, progress: Progress) -> None:
    """Write everything needed to go on; the old checkpoint stays whole until the new one is."""
    state = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "progress": vars(progress)}
    state["random"] = torch.get_rng_state()
    torch.save(state, file.with_suffix(".new"))
    os.replace(file.with_suffix(".new"), file)


def train(team: Team, args: argparse.Namespace) -> None:
    """Run, or go on with, one training; this is the part of one worker."""
    torch.set_num_threads(1 if args.workers > 1 else args.threads)
    first = team.rank == 0
    work, out = Path(args.work), Path(args.out)
    ood_dir = found(args.ood_dir)
    mix = Mix(DATA_DIR, ood_dir)
    codec = Codec(str(out / MODEL_FILE))
    held = [
        encode_sample(codec, [(row["q"], row["answers"][0])]) for row in read_jsonl(DATA_DIR / "held_phrasing.jsonl")
    ]

    model = build(configuration(codec, args.width, args.layers, args.heads), args.seed)
    decayed = [weight for weight in model.parameters() if weight.dim() == 2]
    others = [weight for weight in model.parameters() if weight.dim() != 2]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98), fused=True)
    progress = Progress()
    checkpoint = work / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        torch.set_rng_state(state["random"])
        progress = Progress(**state["progress"])
        print(f"goes on at {progress}", flush=True)
    twin = HalfTwin(model)
    weights = list(model.parameters())
    transformer = torch.compile(twin.model.transformer, dynamic=True) if args.compile else twin.model.transformer
    size = sum(weight.numel() for weight in weights)
    if first:
        print(f"{NAME}: {size:,} parameters, {len(mix.intents)} intents, out-of-domain folder {ood_dir}", flush=True)

    if args.compile:  # compile before the clock starts
        loss_of(twin.model, next(stream(mix, codec, args, Progress(), 0)), transformer).backward()
        twin.hand_over_gradients()

    seconds = args.minutes * 60
    clock, cpu = time.monotonic(), time.process_time()
    logged = validated = saved = progress.elapsed
    start, tokens, cpu_seconds, average = progress.elapsed, progress.tokens, cpu, 0.0
    for batch in stream(mix, codec, args, progress, team.rank):
        for group in optimiser.param_groups:
            group["lr"] = args.lr * learning_rate_share(progress, seconds)
        loss = loss_of(twin.model, batch, transformer)
        loss.backward()
        twin.hand_over_gradients()
        progress.elapsed = team.average(weights, start + time.monotonic() - clock)
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        twin.refresh()
        progress.step += 1
        progress.tokens += batch.tokens * args.workers
        average = loss.item() if not average else 0.98 * average + 0.02 * loss.item()
        now = progress.elapsed
        if first and now - logged > LOG_SECONDS:
            wall, cpu = now - logged, time.process_time()
            print(
                f"{now / 60:6.2f} min step {progress.step} loss {average:.4f} lr {optimiser.param_groups[0]['lr']:.2e} "
                f"tokens {progress.tokens:,} tok/s {(progress.tokens - tokens) / wall:.0f} "
                f"tok/cpu-s {(progress.tokens - tokens) / (cpu - cpu_seconds):.0f}",
                flush=True,
            )
            logged, tokens, cpu_seconds = now, progress.tokens, cpu
        if first and now - validated > VALIDATION_SECONDS:
            print(f"{now / 60:6.2f} min held-out phrasings {validate(model, held, codec):.4f}", flush=True)
            validated = now
        if first and now - saved > CHECKPOINT_SECONDS:
            save_checkpoint(checkpoint, model, optimiser, progress)
            saved = now
        if now >= seconds:
            break
    if not first:
        return
    save_checkpoint(checkpoint, model, optimiser, progress)
    facts: dict[str, Any] = {
        "parameters": size,
        "train_loss": average,
        "held_phrasing_loss": validate(model, held, codec),
    }
    arguments = {name: value for name, value in vars(args).items() if name not in ("work", "out", "ood_dir")}
    facts |= {"arguments": arguments, "progress": vars(progress), "sha256": fingerprint(DATA_DIR, ood_dir)}
    save(model, out, facts)
    print(f"done: {facts}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=80.0, help="length of the run; the learning rate follows it")
    parser.add_argument("--work", default="/tmp/demo_train", help="folder of the checkpoint")
    parser.add_argument("--out", default="/tmp/demo_train/model", help="folder of the finished model")
    parser.add_argument("--ood-dir", default="../shared/demo_data", help="folder of the third-party prompts")
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--workers", type=int, default=1, help="single-threaded processes (1: one, with --threads)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--batch-tokens", type=int, default=1800)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--compile", action="store_true", help="compile the network (a minute at the start)")
    args = parser.parse_args()
    prepare(args)
    run(train, args.workers, args)


if __name__ == "__main__":
    main()
