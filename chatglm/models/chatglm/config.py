"""Configuration of ChatGLM-6B (first release and v1.1), under the key names of its published config.json."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from chatglm.errors import InvalidRequestError
from chatglm.kernels.packing import BITS, GROUP_SIZES
from chatglm.schema import FLAG, Rules, first_mistake, number, one_of, whole

SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "mask_token_id", "gmask_token_id", "pad_token_id")
# The names that transformers uses for the same things.
ALIASES = {
    "num_hidden_layers": "num_layers",
    "intermediate_size": "inner_hidden_size",
    "max_position_embeddings": "max_sequence_length",
}

TOKEN_ID = whole(0, 2**31 - 1)
# What the values must be after those left out are filled in. A hundred times the published sizes: a file that says more
# is damaged or hostile.
RULES: Rules = {
    "vocab_size": whole(1, 10_000_000),
    "hidden_size": whole(1, 100_000),
    "num_layers": whole(1, 1000),
    "num_attention_heads": whole(1, 2000),
    "inner_hidden_size": whole(1, 1_000_000),
    "layernorm_epsilon": number(0, 1),
    "max_sequence_length": whole(1, 1_000_000),
    "position_encoding_2d": FLAG,
    "use_cache": FLAG,
    **dict.fromkeys(SPECIAL_TOKENS, TOKEN_ID),
    "quantization_bit": one_of(0, *BITS),
    "quantization_embeddings": FLAG,
    "quantization_embedding_bit": one_of(0, *BITS),
    "quantization_group_size": one_of(0, *GROUP_SIZES),
    "pre_seq_len": whole(1, 100_000).or_none(),
    "prefix_projection": FLAG,
    "tie_word_embeddings": FLAG,
}


@dataclass
class ChatGLMNetworkConfig:
    """Sizes and special ids of a ChatGLM-6B network; raises InvalidRequestError for an invalid or contradictory value.

    V is 150528 in the first release, 130528 since v1.1; `hidden_size` is C, `num_layers` L. `inner_hidden_size` F: 0 =
    4C. `max_sequence_length`: tokens of prompt and answer. `position_encoding_2d`: two position rows (every published
    checkpoint) or one. `bos_token_id` is `<sop>`; `mask_token_id` and `gmask_token_id` None = 4 and 3 before it, as in
    the first release. `quantization_bit`: 4 or 8 for stored packed layers, else 0; `quantization_embeddings`: the tied
    embedding too (int4-qe folders). Unpublished keys: `quantization_embedding_bit`, 0 = not quantized, None = what
    `quantization_embeddings` says; `quantization_group_size`, 32, 64 or 128 columns share a scale, 0 = a whole row.
    `pre_seq_len` P: P-Tuning v2 prefix length, or None; `prefix_projection`: whether its encoder has the two-layer
    projection. `tie_word_embeddings`: loading ties lm_head to the embedding if the files hold equal values or only one.
    """

    vocab_size: int = 130528
    hidden_size: int = 4096
    num_layers: int = 28
    num_attention_heads: int = 32
    inner_hidden_size: int = 16384
    layernorm_epsilon: float = 1e-5
    max_sequence_length: int = 2048
    position_encoding_2d: bool = True
    use_cache: bool = True
    bos_token_id: int = 130004
    eos_token_id: int = 130005
    mask_token_id: int | None = None
    gmask_token_id: int | None = None
    pad_token_id: int = 3
    quantization_bit: int = 0
    quantization_embeddings: bool = False
    quantization_embedding_bit: int | None = None
    quantization_group_size: int = 0
    pre_seq_len: int | None = None
    prefix_projection: bool = False
    tie_word_embeddings: bool = True

    def __post_init__(self) -> None:
        self.inner_hidden_size = self.inner_hidden_size or 4 * self.hidden_size
        for name, before in (("mask_token_id", 4), ("gmask_token_id", 3)):
            if getattr(self, name) is None and type(self.bos_token_id) is int:
                setattr(self, name, self.bos_token_id - before)
        self.quantization_bit = self.quantization_bit or 0
        self.quantization_embeddings = self.quantization_embeddings or False
        if self.quantization_embedding_bit is None:
            self.quantization_embedding_bit = self.quantization_bit if self.quantization_embeddings else 0
        self.quantization_group_size = self.quantization_group_size or 0
        self._check()

    @classmethod
    def from_keys(cls, keys: Mapping[str, Any]) -> Self:
        """From the content of a config.json; keys that are not of the network are ignored."""
        named = own_names(keys)
        return cls(**{field.name: named[field.name] for field in fields(cls) if field.name in named})

    def _check(self) -> None:
        if mistake := first_mistake(vars(self), RULES):
            raise InvalidRequestError(f"{mistake}.")
        if self.hidden_size % self.num_attention_heads:
            raise InvalidRequestError(
                f"hidden_size {self.hidden_size} is no multiple of num_attention_heads {self.num_attention_heads}."
            )
        if self.quantization_embeddings and self.quantization_embedding_bit != self.quantization_bit:
            raise InvalidRequestError(
                f"quantization_embeddings means {self.quantization_bit} bits for embedding and lm_head, "
                f"but quantization_embedding_bit says {self.quantization_embedding_bit}.",
                "Leave one of the two out.",
            )


def own_names(keys: Mapping[str, Any]) -> dict[str, Any]:
    """The keys with transformers' names replaced; raises InvalidRequestError if both are there and contradict."""
    named: dict[str, Any] = {}
    for key, value in keys.items():
        name = ALIASES.get(key, key)
        if named.setdefault(name, value) != value:
            raise InvalidRequestError(f"{key} {reprlib.repr(value)} contradicts {name} {reprlib.repr(named[name])}.")
    return named
