"""Rows as token ids: for training with labels, for answering without the answer.

    ids      a  b  c  [gMASK]  <sop>  x  y  <eop>  <pad>        S = max_source_length, T = max_target_length
    labels   -  -  -     -     <sop>  x  y  <eop>    -          a..c: at most S - 1 ids;  x..y: at most T - 2

The chat template makes the prompt. What does not fit into S loses its oldest rounds first; a question that is too long
by itself loses its end, and so does an answer. `<sop>` is learned too, as upstream does it: it is predicted at [gMASK].
Two differences from upstream: a row without history is a bare question also where a history column is named (upstream
writes "[Round 0]" around it in training, but not when it answers), and rows are padded to the longest of their batch.

Shapes: B rows, T positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from chatglm.errors import PromptTooLongError
from chatglm.messages import to_messages
from chatglm.model_spec import ModelSpec
from chatglm.training.records import Record

IGNORED = -100


@dataclass(frozen=True)
class Lengths:
    """Most tokens: S gives a prompt of at most S + 1 ids with `[gMASK] <sop>`, T an answer of T - 1 with `<eop>`."""

    source: int
    target: int


@dataclass(frozen=True)
class Example:
    """One row as ids: prompt and answer with their special tokens, which tokens are not learned, and what was cut."""

    prompt_ids: list[int]
    response_ids: list[int]
    num_ignored: int
    dropped_rounds: int = 0
    is_prompt_cut: bool = False
    is_response_cut: bool = False


class Encoder:
    """Makes examples of rows with the family's template: (tokenizer, messages, limit) -> ids and dropped rounds.

    `spec` says which token ends an answer and how much of a prompt is learned; None = the tokenizer's, and nothing.
    """

    def __init__(
        self,
        encode_chat: Callable[..., Any],
        tokenizer: Any,
        lengths: Lengths,
        source_prefix: str = "",
        *,
        spec: ModelSpec | None = None,
    ) -> None:
        self._encode_chat, self._tokenizer = encode_chat, tokenizer
        self._eos_id: int = spec.eos_ids[0] if spec is not None else tokenizer.eos_token_id
        self._encode_answer = partial(spec.encode_answer, tokenizer) if spec is not None else tokenizer.encode_plain
        self._num_learned = spec.learned_prompt_tokens if spec is not None else 0
        self._lengths, self._source_prefix = lengths, source_prefix

    def __call__(self, record: Record) -> Example:
        prompt_ids, dropped, is_cut = self._prompt(record)
        response = self._encode_answer(record.response)
        room = max(self._lengths.target - 2, 0)
        response_ids = [*response[:room], self._eos_id]
        num_ignored = len(prompt_ids) - self._num_learned
        return Example(prompt_ids, response_ids, num_ignored, dropped, is_cut, len(response) > room)

    def _prompt(self, record: Record) -> tuple[list[int], int, bool]:
        query = self._source_prefix + record.prompt
        messages = to_messages(query, record.history)
        try:
            prompt = self._encode_chat(self._tokenizer, messages, self._lengths.source + 2)
            return prompt.input_ids, prompt.dropped_rounds, False
        except PromptTooLongError:
            ids = self._tokenizer.encode_plain(query)[: max(self._lengths.source - 1, 0)]
            return self._tokenizer.build_inputs_with_special_tokens(ids), len(record.history), True


class Examples(Dataset[dict[str, list[int]]]):
    """Examples as the trainer takes them: input_ids and labels, not padded yet."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        example = self._examples[index]
        input_ids = [*example.prompt_ids, *example.response_ids]
        labels = [IGNORED] * example.num_ignored + input_ids[example.num_ignored :]
        return {"input_ids": input_ids, "labels": labels}


@dataclass(frozen=True)
class RightPadding:
    """Puts rows of different lengths into one batch, int64 [B, T] each. Attention never reaches the pads: it is causal
    after `<sop>`.

    Attributes:
        is_pad_learned: pads are labels too (upstream's `--ignore_pad_token_for_loss false`).
        length: pad to so many; None = to the longest row.
    """

    pad_token_id: int
    is_pad_learned: bool = False
    length: int | None = None

    def __call__(self, rows: Sequence[dict[str, list[int]]]) -> dict[str, Tensor]:
        length = self.length or max(len(row["input_ids"]) for row in rows)
        label_filler = self.pad_token_id if self.is_pad_learned else IGNORED
        return {
            "input_ids": _padded([row["input_ids"] for row in rows], length, self.pad_token_id),
            "labels": _padded([row["labels"] for row in rows], length, label_filler),
        }


def left_padded(prompts: Sequence[Sequence[int]], pad_token_id: int) -> tuple[Tensor, Tensor]:
    """Prompts as one batch to answer: ids and attention mask (1 = a real token), int64 [B, T] each."""
    length = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), length), pad_token_id)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, length - len(prompt) :] = torch.tensor(prompt)
        mask[row, length - len(prompt) :] = 1
    return ids, mask


def _padded(rows: Sequence[Sequence[int]], length: int, filler: int) -> Tensor:
    return torch.tensor([[*row, *[filler] * (length - len(row))] for row in rows])


def cut_warning(examples: Sequence[Example]) -> str:
    """What was cut, in one sentence; empty if everything fits."""
    counts = {
        "lost their oldest rounds": sum(example.dropped_rounds > 0 for example in examples),
        "have a cut question": sum(example.is_prompt_cut for example in examples),
        "have a cut answer": sum(example.is_response_cut for example in examples),
    }
    parts = [f"{count} {what}" for what, count in counts.items() if count]
    if not parts:
        return ""
    return f"Of {len(examples)} rows {', '.join(parts)}; see --max_source_length and --max_target_length."
