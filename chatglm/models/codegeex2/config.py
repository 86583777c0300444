"""Configuration of CodeGeeX2-6B: the keys of ChatGLM2-6B."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from chatglm.models.chatglm2.config import ChatGLM2NetworkConfig


@dataclass
class CodeGeeX2NetworkConfig(ChatGLM2NetworkConfig):
    """As the base class."""

    published: ClassVar[Mapping[str, Any]] = {**ChatGLM2NetworkConfig.published, "seq_length": 8192}
