"""Names, shapes and conventions of ChatGLM3-6B's weights (`ModelSpec`): mostly those of ChatGLM2-6B."""

from __future__ import annotations

from typing import Any

from chatglm.model_spec import ModelSpec
from chatglm.models.chatglm2 import weights

# Published folders name only `</s>` in config.json; an answer also ends where another speaker's turn would begin.
USER_ID, OBSERVATION_ID = 64795, 64797


def model_spec(config: Any) -> ModelSpec:
    """The spec of a network of this configuration."""
    roles = (USER_ID, OBSERVATION_ID) if isinstance(config.eos_token_id, int) else ()
    return weights.model_spec(config, eos_ids=(*config.eos_ids, *roles), answer_prefix="\n")
