"""Configuration of GLM-4-9B: the keys of ChatGLM2-6B."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from chatglm.models.chatglm2.config import ChatGLM2NetworkConfig


@dataclass
class GLM4NetworkConfig(ChatGLM2NetworkConfig):
    """As the base class, with `rope_ratio` on the rotary base."""

    rope_scales_base = True
    published: ClassVar[Mapping[str, Any]] = {
        **ChatGLM2NetworkConfig.published,
        "padded_vocab_size": 151552,
        "num_layers": 40,
        "layernorm_epsilon": 1.5625e-07,
        "rope_ratio": 500,
        "seq_length": 131072,
        "eos_token_id": [151329, 151336, 151338],
        "pad_token_id": 151329,
    }
