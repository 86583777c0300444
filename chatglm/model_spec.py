"""What the rest of the suite knows of a network, as data. Each family declares it in its `weights` module.
Shapes: O and I rows and columns of a weight, L layers, H heads, G key and value heads, D head width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol


class TextStage(Protocol):
    """One append-only step between raw and final text: what it gives out is never taken back."""

    def push(self, text: str) -> str: ...
    def finish(self) -> str: ...


@dataclass(frozen=True)
class LinearSpec:
    """A linear layer `name`, e.g. "attention.query_key_value", of every transformer layer; `columns` is I.

    `segments`: (name, rows) of what is fused in it, in order, together O rows, repeated in `num_groups`: 1 =
    concatenated (all of q, k, v), H = interleaved per head. `sharded`: a tensor-parallel rank holds an equal part of
    each segment's rows (its results are a part of the outputs) or of the columns (all_reduce sums its results).
    """

    name: str
    columns: int
    segments: tuple[tuple[str, int], ...]
    num_groups: int = 1
    sharded: Literal["rows", "columns"] = "rows"

    @property
    def rows(self) -> int:
        return sum(rows for _, rows in self.segments)


@dataclass(frozen=True)
class ModelSpec:
    """Names, sizes and conventions of one network.

    Attributes:
        layers, embedding, final_norm, head, prefix_encoder: names of the modules in the network.
        prefix_projection: widths of the embedding and of the inner layer of a prefix encoder with projection.
        linears: the linear layers of a transformer layer, which quantization packs.
        num_layers, hidden_size, vocab_size, num_heads, num_kv_heads, head_width: L, model width, vocabulary, H, G, D.
        context_limit: tokens of prompt and answer together.
        eos_ids, pad_id: tokens that end an answer; the token that rows are padded with, on the left.
        visibility: "prefix" = a prompt sees all of itself; "causal" = only what is before.
        learned_prompt_tokens: tokens at the end of a prompt that training learns as well (ChatGLM-6B: `<sop>`).
        answer_prefix: text between a prompt and the text of an answer (ChatGLM3: a newline, after the name of a tool).
        clean_up: makes the stages that turn decoded text into the answer people see.
        chat_defaults: generation parameters used where a request gives none.
        ties_embedding: whether head and embedding may be one tensor when files hold one, or two equal ones.
        ignored_tensors: patterns of stored names that mean nothing here.
        foreign_tensors, releases: start of stored names -> other family, vocabulary size -> release; for messages.
    """

    layers: str
    embedding: str
    final_norm: str
    head: str
    linears: tuple[LinearSpec, ...]
    num_layers: int
    hidden_size: int
    vocab_size: int
    num_heads: int
    num_kv_heads: int
    head_width: int
    context_limit: int
    eos_ids: tuple[int, ...]
    pad_id: int
    visibility: Literal["prefix", "causal"]
    chat_defaults: Mapping[str, Any]
    prefix_encoder: str = "transformer.prefix_encoder"
    prefix_projection: tuple[int, int] = (0, 0)
    learned_prompt_tokens: int = 0
    answer_prefix: str = ""
    clean_up: Callable[[], list[TextStage]] = list
    ties_embedding: bool = False
    ignored_tensors: tuple[str, ...] = ()
    foreign_tensors: Mapping[str, str] = field(default_factory=dict)
    releases: Mapping[int, str] = field(default_factory=dict)

    @property
    def embedding_weight(self) -> str:
        return f"{self.embedding}.weight"

    @property
    def head_weight(self) -> str:
        return f"{self.head}.weight"

    @property
    def prefix_width(self) -> int:
        """Numbers of one position of a trained prefix: keys and values of every layer."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_width

    def encode_answer(self, tokenizer: Any, text: str) -> list[int]:
        """The ids of an answer, or of its beginning, as they follow a prompt."""
        prefix = tokenizer.encode_plain(self.answer_prefix) if self.answer_prefix else []
        return [*prefix, *tokenizer.encode_plain(text)]

    def layer_of(self, name: str) -> int | None:
        """The number of the layer that a tensor or module belongs to; None outside the layers."""
        number = name.removeprefix(f"{self.layers}.").partition(".")[0] if name.startswith(f"{self.layers}.") else ""
        return int(number) if number.isdecimal() else None
