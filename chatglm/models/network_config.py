"""What the configuration of every family's network has: packed weights, a trained prefix, and checked values."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

from chatglm.errors import InvalidRequestError
from chatglm.kernels.packing import BITS, GROUP_SIZES
from chatglm.schema import FLAG, Rules, first_mistake, one_of, whole

TOKEN_ID = whole(0, 2**31 - 1)


@dataclass
class NetworkConfig:
    """Raises InvalidRequestError for an invalid or contradictory value.

    `quantization_bit`: 4 or 8 for stored packed layers, else 0; `quantization_embeddings`: embedding and head too (as
    int4-qe folders of ChatGLM-6B). Unpublished keys: `quantization_embedding_bit`, 0 = not quantized, None = what
    `quantization_embeddings` says; `quantization_group_size`, 32, 64 or 128 columns share a scale, 0 = a whole row.
    `pre_seq_len` P: P-Tuning v2 prefix length, or None; `prefix_projection`: whether its encoder has the two-layer
    projection. `tie_word_embeddings`: loading ties head and embedding if the files hold equal values or only one.
    """

    # The names that transformers uses for the same things, and what the values must be.
    aliases: ClassVar[Mapping[str, str]] = {}
    rules: ClassVar[Rules] = {
        "use_cache": FLAG,
        "quantization_bit": one_of(0, *BITS),
        "quantization_embeddings": FLAG,
        "quantization_embedding_bit": one_of(0, *BITS),
        "quantization_group_size": one_of(0, *GROUP_SIZES),
        "pre_seq_len": whole(1, 100_000).or_none(),
        "prefix_projection": FLAG,
        "tie_word_embeddings": FLAG,
    }

    use_cache: bool = True
    quantization_bit: int = 0
    quantization_embeddings: bool = False
    quantization_embedding_bit: int | None = None
    quantization_group_size: int = 0
    pre_seq_len: int | None = None
    prefix_projection: bool = False
    tie_word_embeddings: bool = True

    def __post_init__(self) -> None:
        self.quantization_bit = self.quantization_bit or 0
        self.quantization_embeddings = self.quantization_embeddings or False
        if self.quantization_embedding_bit is None:
            self.quantization_embedding_bit = self.quantization_bit if self.quantization_embeddings else 0
        self.quantization_group_size = self.quantization_group_size or 0
        if mistake := first_mistake(vars(self), self.rules):
            raise InvalidRequestError(f"{mistake}.")
        if self.quantization_embeddings and self.quantization_embedding_bit != self.quantization_bit:
            raise InvalidRequestError(
                f"quantization_embeddings means {self.quantization_bit} bits for embedding and lm_head, "
                f"but quantization_embedding_bit says {self.quantization_embedding_bit}.",
                "Leave one of the two out.",
            )

    @classmethod
    def from_keys(cls, keys: Mapping[str, Any]) -> Self:
        """From the content of a config.json; keys that are not of the network are ignored."""
        named = cls.own_names(keys)
        return cls(**{name: named[name] for name in cls.names() if name in named})

    @classmethod
    def names(cls) -> tuple[str, ...]:
        return tuple(field.name for field in fields(cls))

    @classmethod
    def own_names(cls, keys: Mapping[str, Any]) -> dict[str, Any]:
        """The keys with transformers' names replaced; raises InvalidRequestError if both are there and contradict."""
        named: dict[str, Any] = {}
        for key, value in keys.items():
            name = cls.aliases.get(key, key)
            if named.setdefault(name, value) != value:
                raise InvalidRequestError(
                    f"{key} {reprlib.repr(value)} contradicts {name} {reprlib.repr(named[name])}."
                )
        return named
