"""GLM-4-9B for transformers: what `AutoConfig` and `AutoModel` return for its folder, and training uses."""

from __future__ import annotations

from chatglm.models.chatglm2.model import CausalModel, ChatGLM2Config
from chatglm.models.glm4.config import GLM4NetworkConfig
from chatglm.models.glm4.network import GLM4Network
from chatglm.models.role_chat import RoleChat
from chatglm.models.tool_calls import read_json_arguments


class GLM4Config(ChatGLM2Config):
    """`GLM4NetworkConfig` (parameters, errors) for transformers."""

    __init__ = ChatGLM2Config.__init__  # or the library would write one
    network_config = GLM4NetworkConfig
    rope_scales_base = True
    tokenizer_class = "GLM4Tokenizer"  # where tokenizer_config.json names none


class GLM4ForConditionalGeneration(GLM4Network, RoleChat, CausalModel):
    """The network with its output head."""

    __init__ = CausalModel.__init__
    forward = CausalModel.forward  # type: ignore[assignment]
    config_class = GLM4Config
    read_arguments = staticmethod(read_json_arguments)
