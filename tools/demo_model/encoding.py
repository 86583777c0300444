"""Turns conversations into ids, and ids into training batches."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import sentencepiece
import torch

from tools.demo_model.conversation import Turn

LONGEST_BLANK_RUN = 16  # `<|blank_2..16|>` are in the vocabulary of the demo model (the published one goes to 80)
FIRST_TOKENS = 3  # the tokens that decide which answer this is ...
FIRST_TOKENS_WEIGHT = 3.0  # ... and how much more they count
SHORT_ANSWER = 16  # tokens; in an answer this short (a sum, a name, a capital) every token counts as much as the first


def render_prompt(history: Sequence[Turn], query: str) -> str:
    """Return the prompt text: the bare query alone, or numbered rounds once there is a history."""
    if not history:
        return query
    rounds = "".join(f"[Round {i}]\n问：{q}\n答：{a}\n" for i, (q, a) in enumerate(history))
    return f"{rounds}[Round {len(history)}]\n问：{query}\n答："


def protect_blanks(text: str) -> str:
    """Replace what SentencePiece would not keep: new lines, tabs and runs of blanks."""
    text = text.replace("\n", "<n>").replace("\t", "<|tab|>")
    for length in range(LONGEST_BLANK_RUN, 1, -1):
        text = text.replace(" " * length, f"<|blank_{length}|>")
    return text


def restore_blanks(text: str) -> str:
    """Undo `protect_blanks`."""
    text = text.replace("<n>", "\n").replace("<|tab|>", "\t")
    for length in range(2, LONGEST_BLANK_RUN + 1):
        text = text.replace(f"<|blank_{length}|>", " " * length)
    return text


class Codec:
    """Text to ids and back with the SentencePiece file alone, equal to what the package's tokenizer does."""

    def __init__(self, model_file: str) -> None:
        self.pieces = sentencepiece.SentencePieceProcessor(model_file=model_file)
        self.gmask: int = self.pieces.piece_to_id("[gMASK]")
        self.sop: int = self.pieces.piece_to_id("<sop>")
        self.eop: int = self.pieces.piece_to_id("<eop>")
        self.pad: int = self.pieces.piece_to_id("<pad>")

    def encode(self, text: str) -> list[int]:
        return list(self.pieces.encode(protect_blanks(text)))

    def encode_prompt(self, history: Sequence[Turn], query: str) -> list[int]:
        return [*self.encode(render_prompt(history, query)), self.gmask, self.sop]

    def decode(self, ids: Sequence[int]) -> str:
        return restore_blanks(self.pieces.decode(list(ids)))


@dataclass(frozen=True)
class Encoded:
    """One training sample: all ids, and the index of `<sop>` in them (the length of the visible prefix)."""

    ids: list[int]
    context: int

    @property
    def answer_length(self) -> int:
        return len(self.ids) - self.context - 1


def encode_sample(codec: Codec, turns: Sequence[Turn]) -> Encoded:
    """Encode a conversation whose last answer is to be learned: prompt, [gMASK], <sop>, answer, <eop>."""
    *history, (query, answer) = turns
    prompt = codec.encode_prompt(history, query)
    return Encoded([*prompt, *codec.encode(answer), codec.eop], len(prompt) - 1)


def positions(context: int, length: int) -> torch.Tensor:
    """Return the two position rows [2, length]: running then frozen at [gMASK]; zero then counting from <sop>."""
    rows = torch.zeros(2, length, dtype=torch.long)
    rows[0, :context] = torch.arange(context)
    rows[0, context:] = context - 1
    rows[1, context:] = torch.arange(1, length - context + 1)
    return rows


def visibility(contexts: torch.Tensor, length: int) -> torch.Tensor:
    """Return who may see whom [B, 1, length, length]: causal, and everybody sees what stands before <sop>."""
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    prefix = torch.arange(length)[None, :] < contexts[:, None]
    return (causal[None] | prefix[:, None, :])[:, None]


@dataclass(frozen=True)
class Batch:
    """Padded tensors of some samples; `rows`, `targets` and `weights` list the places that are to be predicted."""

    input_ids: torch.Tensor  # [B, T]
    position_ids: torch.Tensor  # [B, 2, T]
    visible: torch.Tensor  # [B, 1, T, T]
    rows: torch.Tensor  # [N] flat indices into B * T
    targets: torch.Tensor  # [N]
    weights: torch.Tensor  # [N] sum to one

    @property
    def tokens(self) -> int:
        return self.input_ids.numel()


def collate(samples: Sequence[Encoded], pad: int, multiple: int = 8) -> Batch:
    """Pad samples on the right to a common length (a multiple, so that few shapes occur) and weigh their tokens."""
    longest = max(len(sample.ids) for sample in samples) - 1
    length = -(-longest // multiple) * multiple
    ids = torch.full((len(samples), length), pad, dtype=torch.long)
    position_ids = torch.zeros(len(samples), 2, length, dtype=torch.long)
    rows, targets, weights = [], [], []
    for i, sample in enumerate(samples):
        size = len(sample.ids) - 1
        ids[i, :size] = torch.tensor(sample.ids[:-1])
        position_ids[i] = positions(sample.context, length)
        rows += range(i * length + sample.context, i * length + size)
        targets += sample.ids[sample.context + 1 :]
        weights += token_weights(sample.answer_length)
    contexts = torch.tensor([sample.context for sample in samples])
    weight = torch.tensor(weights)
    return Batch(
        ids,
        position_ids,
        visibility(contexts, length),
        torch.tensor(rows),
        torch.tensor(targets),
        weight / weight.sum(),
    )


def token_weights(answer_length: int) -> list[float]:
    """Weigh the tokens of one answer: long answers must not own the loss, and the first tokens choose the answer."""
    base = answer_length**-0.5
    heavy = answer_length if answer_length <= SHORT_ANSWER else FIRST_TOKENS
    return [base * (FIRST_TOKENS_WEIGHT if i < heavy else 1.0) for i in range(answer_length)]


def grouped(samples: Sequence[Encoded], tokens: int, rng: random.Random) -> list[list[Encoded]]:
    """Sort samples into shuffled groups of similar length, each of about `tokens` tokens."""
    order = sorted(range(len(samples)), key=lambda i: (len(samples[i].ids), rng.random()))
    groups: list[list[Encoded]] = [[]]
    for i in order:
        if groups[-1] and (len(groups[-1]) + 1) * len(samples[i].ids) > tokens:
            groups.append([])
        groups[-1].append(samples[i])
    rng.shuffle(groups)
    return groups
