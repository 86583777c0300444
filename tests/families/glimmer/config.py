"""Sizes and special ids of a Glimmer network, under the key names of its config.json."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Self

from chatglm.models.recognition import Facts

MODEL_TYPE = "glimmer"


class GlimmerNetworkConfig:
    """What a network is built from; unknown keys of config.json are ignored.

    Args:
        padded_vocab_size: rows of embedding and head.
        hidden_size: C.
        num_layers: L.
        num_attention_heads: H query heads.
        multi_query_group_num: G heads of keys and values.
        kv_channels: D; H * D need not be C.
        ffn_hidden_size: F.
        seq_length: context limit in tokens.
        eos_token_id: every id that ends an answer.
    """

    def __init__(
        self,
        padded_vocab_size: int = 64,
        hidden_size: int = 64,
        num_layers: int = 3,
        num_attention_heads: int = 4,
        multi_query_group_num: int = 2,
        kv_channels: int = 8,
        ffn_hidden_size: int = 96,
        seq_length: int = 128,
        layernorm_epsilon: float = 1e-5,
        eos_token_id: list[int] | None = None,
        pad_token_id: int = 0,
        quantization_bit: int = 0,
        quantization_embedding_bit: int = 0,
        quantization_group_size: int = 0,
        pre_seq_len: int | None = None,
        prefix_projection: bool = False,
        tie_word_embeddings: bool = False,
        dtype: str | None = None,
    ) -> None:
        self.padded_vocab_size = padded_vocab_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.num_attention_heads = num_attention_heads
        self.multi_query_group_num = multi_query_group_num
        self.kv_channels = kv_channels
        self.ffn_hidden_size = ffn_hidden_size
        self.seq_length = seq_length
        self.layernorm_epsilon = layernorm_epsilon
        self.eos_token_id = list(eos_token_id or [])
        self.pad_token_id = pad_token_id
        self.quantization_bit = quantization_bit
        self.quantization_embedding_bit = quantization_embedding_bit
        self.quantization_group_size = quantization_group_size
        self.pre_seq_len = pre_seq_len
        self.prefix_projection = prefix_projection
        self.tie_word_embeddings = tie_word_embeddings
        self.dtype = dtype

    @classmethod
    def from_keys(cls, keys: Mapping[str, Any]) -> Self:
        """The configuration that a config.json describes."""
        known = inspect.signature(cls).parameters
        return cls(**{key: value for key, value in keys.items() if key in known})


def recognises(facts: Facts) -> bool:
    """Whether a folder with this config.json is a Glimmer model."""
    return facts.keys.get("model_type") == MODEL_TYPE
