"""CodeGeeX2-6B for transformers: what `AutoConfig` and `AutoModel` return for its folder, and training uses."""

from __future__ import annotations

from chatglm.models.chatglm2.model import CausalModel, ChatGLM2Config
from chatglm.models.codegeex2.config import CodeGeeX2NetworkConfig
from chatglm.models.codegeex2.network import CodeGeeX2Network
from chatglm.models.upstream_chat import RoundsChat


class CodeGeeX2Config(ChatGLM2Config):
    """`CodeGeeX2NetworkConfig` (parameters, errors) for transformers."""

    __init__ = ChatGLM2Config.__init__  # or the library would write one
    network_config = CodeGeeX2NetworkConfig
    tokenizer_class = "CodeGeeX2Tokenizer"  # where tokenizer_config.json names none


class CodeGeeX2ForConditionalGeneration(CodeGeeX2Network, RoundsChat, CausalModel):
    """The network with its output head."""

    __init__ = CausalModel.__init__
    forward = CausalModel.forward  # type: ignore[assignment]
    config_class = CodeGeeX2Config
