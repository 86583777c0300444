"""GLM-4-9B for transformers: what `AutoConfig` and `AutoModel` return for its folder, and training uses."""

from __future__ import annotations

from chatglm.models.chatglm2.model import ChatGLM2Config, ChatGLM2ForConditionalGeneration
from chatglm.models.glm4.config import GLM4NetworkConfig
from chatglm.models.glm4.network import GLM4Network


class GLM4Config(ChatGLM2Config):
    """`GLM4NetworkConfig` (parameters, errors) for transformers."""

    __init__ = ChatGLM2Config.__init__  # or the library would write one
    network_config = GLM4NetworkConfig
    rope_scales_base = True
    tokenizer_class = "GLM4Tokenizer"  # where tokenizer_config.json names none


class GLM4ForConditionalGeneration(GLM4Network, ChatGLM2ForConditionalGeneration):
    """The network with its output head."""

    __init__ = ChatGLM2ForConditionalGeneration.__init__
    forward = ChatGLM2ForConditionalGeneration.forward
    config_class = GLM4Config
