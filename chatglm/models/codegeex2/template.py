"""The chat template of CodeGeeX2-6B, that of ChatGLM2-6B. Code is completed without one: see `languages.py`."""

from chatglm.models.chatglm2.template import encode_chat, render

__all__ = ["encode_chat", "render"]
