"""Names, shapes and conventions of CodeGeeX2-6B's weights (`ModelSpec`): mostly those of ChatGLM2-6B."""

from __future__ import annotations

from typing import Any

from chatglm.model_spec import ModelSpec
from chatglm.models.chatglm2 import weights


def model_spec(config: Any) -> ModelSpec:
    """The spec of a network of this configuration. White space in front of an answer is indentation and stays."""
    return weights.model_spec(config, clean_up=list)
