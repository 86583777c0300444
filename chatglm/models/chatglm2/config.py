"""Configuration of ChatGLM2-6B and what followed it, under the key names of their published config.json."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from chatglm.errors import InvalidRequestError
from chatglm.models.network_config import TOKEN_ID, NetworkConfig
from chatglm.schema import FLAG, Rule, Rules, first_mistake, number, whole

logger = logging.getLogger(__name__)

ROTARY_BASE = 10000.0
_TRUE, _FALSE = Rule("true", lambda value: value is True), Rule("false", lambda value: value is False)


class Derived:
    """What follows from the keys, for `NetworkConfig` and transformers' configuration alike."""

    # Whether `rope_ratio` multiplies the rotary base, or divides the positions (ChatGLM2-6B-32k).
    rope_scales_base: ClassVar[bool] = False
    num_attention_heads: int
    multi_query_attention: bool
    multi_query_group_num: int
    rope_ratio: float
    eos_token_id: Any

    @property
    def num_key_value_heads(self) -> int:
        """G."""
        return self.multi_query_group_num if self.multi_query_attention else self.num_attention_heads

    @property
    def eos_ids(self) -> tuple[int, ...]:
        return (self.eos_token_id,) if isinstance(self.eos_token_id, int) else tuple(self.eos_token_id)

    @property
    def rotary_base(self) -> float:
        return ROTARY_BASE * (self.rope_ratio if self.rope_scales_base else 1)

    @property
    def position_divisor(self) -> float:
        return 1 if self.rope_scales_base else self.rope_ratio


@dataclass
class ChatGLM2NetworkConfig(Derived, NetworkConfig):
    """Sizes, switches and special ids; a key that is missing has upstream's class default, which published models
    often differ from: see `from_keys`.

    `padded_vocab_size` V, `hidden_size` C, `num_layers` L, `num_attention_heads` H, `kv_channels` D (H * D need not be
    C), `ffn_hidden_size` F, `seq_length` tokens of prompt and answer. `multi_query_attention`:
    `multi_query_group_num` heads of keys and values, else H, interleaved with the queries. `rope_ratio`: see
    `rope_scales_base`. `rmsnorm`: RMSNorm or LayerNorm; `post_layer_norm`: whether there is a final norm;
    `apply_residual_connection_post_layernorm`: the residual starts from the normalised input. `sandwich_norms`
    (unpublished): two more norms in a layer, as GLM-4-0414 has. Switches of upstream's that change only how things are
    computed are not kept; others that nothing here computes are refused.
    """

    # What every published model says, where upstream's class default is another.
    published: ClassVar[Mapping[str, Any]] = {
        "add_qkv_bias": True,
        "multi_query_attention": True,
        "multi_query_group_num": 2,
        "seq_length": 32768,
    }
    aliases = {
        "num_hidden_layers": "num_layers",
        "intermediate_size": "ffn_hidden_size",
        "max_position_embeddings": "seq_length",
        "vocab_size": "padded_vocab_size",
    }
    rules: ClassVar[Rules] = {
        "padded_vocab_size": whole(1, 10_000_000),
        "hidden_size": whole(1, 100_000),
        "num_layers": whole(1, 1000),
        "num_attention_heads": whole(1, 2000),
        "kv_channels": whole(4, 10_000),
        "ffn_hidden_size": whole(1, 1_000_000),
        "seq_length": whole(1, 10_000_000),
        "multi_query_group_num": whole(1, 2000),
        "layernorm_epsilon": number(0, 1),
        "rope_ratio": number(1e-3, 1e6),
        **dict.fromkeys(
            (
                "add_bias_linear",
                "add_qkv_bias",
                "multi_query_attention",
                "rmsnorm",
                "post_layer_norm",
                "apply_residual_connection_post_layernorm",
                "sandwich_norms",
            ),
            FLAG,
        ),
        "eos_token_id": TOKEN_ID.or_list(),
        "pad_token_id": TOKEN_ID,
        **NetworkConfig.rules,
    }
    # Keys of config.json that are read for this alone: anything else cannot be computed here.
    required: ClassVar[Rules] = {
        "original_rope": _TRUE,
        "rotary_percent": number(0.5, 0.5),
        "interleaved_qkv": _FALSE,
        "fp32_residual_connection": _FALSE,
        "rope_scaling": Rule("null", lambda value: value is None),
        "hidden_dropout": number(0, 0),
        "attention_dropout": number(0, 0),
    }

    padded_vocab_size: int = 65024
    hidden_size: int = 4096
    num_layers: int = 28
    num_attention_heads: int = 32
    kv_channels: int = 128
    ffn_hidden_size: int = 13696
    seq_length: int = 2048
    multi_query_attention: bool = False
    multi_query_group_num: int = 1
    layernorm_epsilon: float = 1e-5
    rope_ratio: float = 1
    add_bias_linear: bool = False
    add_qkv_bias: bool = False
    rmsnorm: bool = True
    post_layer_norm: bool = True
    apply_residual_connection_post_layernorm: bool = False
    sandwich_norms: bool = False
    eos_token_id: int | list[int] = 2
    pad_token_id: int = 0
    tie_word_embeddings: bool = False

    def __post_init__(self) -> None:
        self.pad_token_id = self.pad_token_id or 0
        super().__post_init__()
        if self.num_attention_heads % self.num_key_value_heads:
            raise InvalidRequestError(
                f"num_attention_heads {self.num_attention_heads} is no multiple of multi_query_group_num "
                f"{self.multi_query_group_num}."
            )
        if not self.eos_ids:
            raise InvalidRequestError("eos_token_id is an empty list.", "Name the token that ends an answer.")
        if self.kv_channels % 4:
            raise InvalidRequestError(f"kv_channels {self.kv_channels} is no multiple of 4: half of a head is rotated.")

    @classmethod
    def from_keys(cls, keys: Mapping[str, Any]) -> Self:
        """As the base class; warns of keys that are missing although published models say something else there."""
        if mistake := first_mistake({name: keys[name] for name in cls.required if name in keys}, cls.required):
            raise InvalidRequestError(
                f"{mistake}.", "Published models have it so; nothing here computes another value."
            )
        if isinstance(flag := keys.get("prefix_projection"), list) and len(flag) == 1:  # upstream's class writes this
            keys = {**keys, "prefix_projection": flag[0]}
        config = super().from_keys(keys)
        missing = [name for name in cls.published if name not in cls.own_names(keys)]
        if missing:
            wrong = ", ".join(
                f"{name} = {getattr(config, name)} (published: {cls.published[name]})" for name in missing
            )
            logger.warning("config.json does not say: %s.", wrong)
        return config
