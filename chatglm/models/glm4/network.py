"""The network of GLM-4-9B: that of ChatGLM2-6B."""

from __future__ import annotations

from chatglm.models.chatglm2.network import ChatGLM2Network
from chatglm.models.glm4.template import encode_chat
from chatglm.models.glm4.weights import model_spec


class GLM4Network(ChatGLM2Network):
    """As the base class."""

    encode_chat = staticmethod(encode_chat)
    model_spec = staticmethod(model_spec)
