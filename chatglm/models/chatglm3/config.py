"""Configuration of ChatGLM3-6B: the keys of ChatGLM2-6B."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from chatglm.models.chatglm2.config import ChatGLM2NetworkConfig


@dataclass
class ChatGLM3NetworkConfig(ChatGLM2NetworkConfig):
    """As the base class, with `rope_ratio` on the rotary base."""

    rope_scales_base = True
    published: ClassVar[Mapping[str, Any]] = {**ChatGLM2NetworkConfig.published, "seq_length": 8192}
