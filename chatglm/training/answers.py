"""Answers to many prompts in batches: padded on the left, greedy unless sampling is asked for."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from chatglm.atomic import write_text
from chatglm.generation.text import run_stages
from chatglm.progress import ProgressBar
from chatglm.training.encoding import left_padded

PREDICTIONS_NAME = "generated_predictions.txt"


@dataclass(frozen=True)
class Answering:
    """How prompts are answered.

    Attributes:
        max_new_tokens: of an answer, `<eop>` included.
        batch_size: prompts at once; the answers do not depend on it.
        num_beams: more than 1 searches with beams.
        do_sample: with upstream's top_p 0.7 and temperature 0.95.
    """

    max_new_tokens: int
    batch_size: int = 1
    num_beams: int = 1
    do_sample: bool = False


@torch.inference_mode()
def answer(network: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], how: Answering) -> list[str]:
    """The answer to each prompt (token ids that end with `[gMASK] <sop>`), in order; the network is in eval mode.

    Raises:
        InvalidLogitsError: the network produced NaN or infinity.
    """
    answers: list[str] = [""] * len(prompts)
    # Long prompts first: rows of a batch have similar lengths, and a lack of memory shows at once.
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    with ProgressBar(sys.stderr, title="回答 Answering", unit=" answers") as bar:
        for start in range(0, len(order), how.batch_size):
            batch = order[start : start + how.batch_size]
            texts = _answer_batch(network, tokenizer, [prompts[i] for i in batch], how)
            for i, text in zip(batch, texts, strict=True):
                answers[i] = text
            bar(start + len(batch), len(prompts))
    return answers


def _answer_batch(network: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], how: Answering) -> list[str]:
    ids, mask = left_padded(prompts, tokenizer.pad_token_id)
    sampling = {"top_p": 0.7, "temperature": 0.95, "top_k": 0} if how.do_sample else {}
    output = network.generate(
        ids.to(network.device),
        attention_mask=mask.to(network.device),
        max_new_tokens=how.max_new_tokens,
        num_beams=how.num_beams,
        do_sample=how.do_sample,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **sampling,
    )
    return [_text(network, tokenizer, row) for row in output[:, ids.shape[1] :].tolist()]


def _text(network: Any, tokenizer: Any, ids: list[int]) -> str:
    stop = ids.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in ids else len(ids)
    kept = [i for i in ids[:stop] if i not in (tokenizer.pad_token_id, tokenizer.bos_token_id)]
    return run_stages(network.spec.clean_up(), tokenizer.decode(kept))


def write_predictions(folder: Path, predictions: Sequence[str], labels: Sequence[str]) -> Path:
    """One JSON object per line with the expected and the given answer; the file's path."""
    rows = ({"labels": label, "predict": text} for label, text in zip(labels, predictions, strict=True))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / PREDICTIONS_NAME
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path
