"""The network of CodeGeeX2-6B: that of ChatGLM2-6B."""

from __future__ import annotations

from chatglm.models.chatglm2.network import ChatGLM2Network
from chatglm.models.codegeex2.template import encode_chat
from chatglm.models.codegeex2.weights import model_spec


class CodeGeeX2Network(ChatGLM2Network):
    """As the base class."""

    encode_chat = staticmethod(encode_chat)
    model_spec = staticmethod(model_spec)
