"""CodeGeeX2-6B for transformers: what `AutoConfig` and `AutoModel` return for its folder, and training uses."""

from __future__ import annotations

from chatglm.models.chatglm2.model import ChatGLM2Config, ChatGLM2ForConditionalGeneration
from chatglm.models.codegeex2.config import CodeGeeX2NetworkConfig
from chatglm.models.codegeex2.network import CodeGeeX2Network


class CodeGeeX2Config(ChatGLM2Config):
    """`CodeGeeX2NetworkConfig` (parameters, errors) for transformers."""

    __init__ = ChatGLM2Config.__init__  # or the library would write one
    network_config = CodeGeeX2NetworkConfig
    tokenizer_class = "CodeGeeX2Tokenizer"  # where tokenizer_config.json names none


class CodeGeeX2ForConditionalGeneration(CodeGeeX2Network, ChatGLM2ForConditionalGeneration):
    """The network with its output head."""

    __init__ = ChatGLM2ForConditionalGeneration.__init__
    forward = ChatGLM2ForConditionalGeneration.forward
    config_class = CodeGeeX2Config
