"""ChatGLM3-6B for transformers: what `AutoConfig` and `AutoModel` return for its folder, and training uses."""

from __future__ import annotations

from chatglm.models.chatglm2.model import CausalModel, ChatGLM2Config
from chatglm.models.chatglm3.config import ChatGLM3NetworkConfig
from chatglm.models.chatglm3.network import ChatGLM3Network
from chatglm.models.role_chat import RoleChat
from chatglm.models.tool_calls import read_python_call


class ChatGLM3Config(ChatGLM2Config):
    """`ChatGLM3NetworkConfig` (parameters, errors) for transformers."""

    __init__ = ChatGLM2Config.__init__  # or the library would write one
    network_config = ChatGLM3NetworkConfig
    rope_scales_base = True
    tokenizer_class = "ChatGLM3Tokenizer"  # where tokenizer_config.json names none


class ChatGLM3ForConditionalGeneration(ChatGLM3Network, RoleChat, CausalModel):
    """The network with its output head."""

    __init__ = CausalModel.__init__
    forward = CausalModel.forward  # type: ignore[assignment]
    config_class = ChatGLM3Config
    read_arguments = staticmethod(read_python_call)
