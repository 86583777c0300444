"""Scores a demo model folder: the fixed list, held-out phrasings, every small sum, and the gibberish guard.

python -m tools.demo_model.evaluate /tmp/demo_train/model
python -m tools.demo_model.evaluate chatglm/demo/checkpoint --pipeline     # through the package's own chat path
"""

from __future__ import annotations

import argparse
import json
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from tools.demo_model.arithmetic import answer, small_sums
from tools.demo_model.conversation import Turn, read_jsonl
from tools.demo_model.encoding import Codec, positions, visibility
from tools.demo_model.network import load
from tools.demo_model.refusals import third_party_prompts
from tools.demo_model.samples import DATA_DIR

Conversation = Sequence[str]  # the user's turns; the model's own replies stand between them
AnswerAll = Callable[[Sequence[Conversation]], list[str]]
LONGEST_REPLY = 220  # tokens
REFUSED = {"zh": r"这个问题我还不会|迷你演示模型", "en": r"can't answer that|tiny demo model"}
TARGETS = {"basic": 20, "para": 36, "gen": 11, "multi": 6, "ood": 11}


class Network:
    """Answers with the bare network: one padded batch at a time, greedy, the whole prefix again at every step."""

    def __init__(self, folder: Path, batch: int = 64) -> None:
        self.model, self.codec = load(folder)
        self.batch = batch

    def answer_all(self, conversations: Sequence[Conversation]) -> list[str]:
        """Return the reply to the last turn of every conversation."""
        histories: list[list[Turn]] = [[] for _ in conversations]
        for turn in range(max(len(conversation) for conversation in conversations)):
            open_ = [i for i, conversation in enumerate(conversations) if turn < len(conversation)]
            replies = self._reply([(histories[i], conversations[i][turn]) for i in open_])
            for i, reply in zip(open_, replies, strict=True):
                histories[i].append((conversations[i][turn], reply))
        return [history[-1][1] for history in histories]

    def _reply(self, asked: list[tuple[list[Turn], str]]) -> list[str]:
        prompts = [self.codec.encode_prompt(history, query) for history, query in asked]
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        replies = [""] * len(prompts)
        for start in range(0, len(order), self.batch):
            part = order[start : start + self.batch]
            for i, ids in zip(part, greedy(self.model, self.codec, [prompts[i] for i in part]), strict=True):
                replies[i] = self.codec.decode(ids).strip()
        return replies


@torch.inference_mode()
def greedy(model: Any, codec: Codec, prompts: list[list[int]]) -> list[list[int]]:
    """Continue each prompt until <eop>; rows that have ended leave the batch, nothing is cached."""
    rows = [list(prompt) for prompt in prompts]
    alive = list(range(len(rows)))
    for _ in range(LONGEST_REPLY + 1):
        length = max(len(rows[i]) for i in alive)
        ids = torch.full((len(alive), length), codec.pad)
        for k, i in enumerate(alive):
            ids[k, : len(rows[i])] = torch.tensor(rows[i])
        contexts = torch.tensor([len(prompts[i]) - 1 for i in alive])
        position_ids = torch.stack([positions(len(prompts[i]) - 1, length) for i in alive])
        hidden = model.transformer(ids, position_ids, visibility(contexts, length))
        last = hidden[torch.arange(len(alive)), torch.tensor([len(rows[i]) - 1 for i in alive])]
        for i, token in zip(list(alive), model.lm_head(last).argmax(-1).tolist(), strict=True):
            rows[i].append(token)
            if token == codec.eop:
                alive.remove(i)
        if not alive:
            break
    return [
        [token for token in row[len(prompt) :] if token != codec.eop] for row, prompt in zip(rows, prompts, strict=True)
    ]


def package_answer_all(folder: Path) -> AnswerAll:
    """Return the same through `chatglm.load_pipeline`, as a user would get it at temperature 0."""
    from chatglm import load_pipeline

    pipeline = load_pipeline(model=str(folder), device="cpu")

    def answer_all(conversations: Sequence[Conversation]) -> list[str]:
        replies = []
        for conversation in conversations:
            history: list[Turn] = []
            for query in conversation:
                _, history = pipeline.chat(query, history=history, temperature=0)
            replies.append(history[-1][1])
        return replies

    return answer_all


def score_list(answer_all: AnswerAll, show: bool) -> dict[str, Any]:
    """Score the fixed list of 100: the reply must match any of an entry's expressions."""
    rows = read_jsonl(DATA_DIR / "eval100.jsonl")
    right: Counter[str] = Counter()
    for row, reply in zip(rows, answer_all([row["turns"] for row in rows]), strict=True):
        good = any(re.search(expression, reply, re.DOTALL) for expression in row["any"])
        right[row["kind"]] += good
        if show and not good:
            print(f"  list {row['kind']}: {' / '.join(row['turns'])} -> {reply[:90]!r}")
    return {"list": right.total(), **{f"list_{kind}": right[kind] for kind in TARGETS}}


def score_held(answer_all: AnswerAll, show: bool) -> dict[str, Any]:
    """Score the held-out phrasings: the reply must be one of the intent's answers, exactly."""
    rows = read_jsonl(DATA_DIR / "held_phrasing.jsonl")
    right = 0
    for row, reply in zip(rows, answer_all([[row["q"]] for row in rows]), strict=True):
        right += reply in row["answers"]
        if show and reply not in row["answers"]:
            print(f"  held {row['q']} -> {reply[:60]!r}")
    return {"held": right, "held_of": len(rows)}


def score_sums(answer_all: AnswerAll, show: bool) -> dict[str, Any]:
    """Score every small sum in both languages."""
    scores: dict[str, Any] = {}
    for lang, question in (("zh", "{}{}{}等于几"), ("en", "What is {}{}{}?")):
        items = small_sums()
        signs = {"+": "+", "-": "-", "*": "×", "/": "÷"}
        replies = answer_all([[question.format(item.a, signs[item.op], item.b)] for item in items])
        wrong = [(item, reply) for item, reply in zip(items, replies, strict=True) if reply != answer(item, lang)]
        scores[f"sums_{lang}_percent"] = round(100 * (1 - len(wrong) / len(items)), 2)
        scores[f"sums_{lang}_wrong_by_operator"] = dict(Counter(item.op for item, _ in wrong))
        if show:
            print(f"  sums {lang}:", "; ".join(f"{item.a}{item.op}{item.b} -> {reply}" for item, reply in wrong[:12]))
    return scores


def score_guard(
    answer_all: AnswerAll, ood_dir: Path, size: int, length: Callable[[str], int], show: bool
) -> dict[str, Any]:
    """Score third-party sentences that were kept out of training: refusals, repetition, length."""
    prompts = random.Random(0).sample(third_party_prompts(ood_dir, held=True), size)
    replies = answer_all([[text] for _, text in prompts])
    refused = repeated = long = 0
    for (lang, text), reply in zip(prompts, replies, strict=True):
        good = re.search(REFUSED[lang], reply) is not None
        refused += good
        units = reply.split() if lang == "en" else list(reply)
        grams = Counter(tuple(units[i : i + 4]) for i in range(len(units) - 3))
        repeated += bool(grams) and max(grams.values()) > 3
        long += length(reply) > LONGEST_REPLY
        if show and not good:
            print(f"  guard {text} -> {reply[:60]!r}")
    return {
        "guard_refused_percent": round(100 * refused / size, 1),
        "guard_repeating": repeated,
        "guard_too_long": long,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ood-dir", type=Path, default=Path("../shared/demo_data"))
    parser.add_argument("--pipeline", action="store_true", help="answer through chatglm.load_pipeline")
    parser.add_argument("--guard", type=int, default=200, help="third-party sentences of the gibberish guard")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quiet", action="store_true", help="do not show what was missed")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    start = time.monotonic()
    answer_all = package_answer_all(args.folder) if args.pipeline else Network(args.folder).answer_all
    codec = Codec(str(args.folder / "ice_text.model"))
    show = not args.quiet
    scores: dict[str, Any] = {"folder": str(args.folder), "path": "pipeline" if args.pipeline else "network"}
    scores |= score_list(answer_all, show) | score_held(answer_all, show) | score_sums(answer_all, show)
    if args.ood_dir.exists():
        scores |= score_guard(answer_all, args.ood_dir, args.guard, lambda text: len(codec.encode(text)), show)
    scores["seconds"] = round(time.monotonic() - start, 1)
    for name, value in scores.items():
        target = TARGETS.get(name.removeprefix("list_")) if name.startswith("list_") else None
        print(f"{name:32} {value}" + (f"   (target {target})" if target else ""))
    print(json.dumps(scores, ensure_ascii=False))


if __name__ == "__main__":
    main()
