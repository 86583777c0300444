"""Names, shapes and conventions of GLM-4-9B's weights (`ModelSpec`): mostly those of ChatGLM2-6B."""

from __future__ import annotations

from typing import Any

from chatglm.model_spec import ModelSpec
from chatglm.models.chatglm2 import weights


def model_spec(config: Any) -> ModelSpec:
    """The spec of a network of this configuration."""
    return weights.model_spec(config, answer_prefix="\n")
