"""The tokenizer of CodeGeeX2-6B: that of ChatGLM2-6B; its file puts no blank in front of a text."""

from __future__ import annotations

from chatglm.models.chatglm2.tokenizer import ChatGLM2TextTokenizer


class CodeGeeX2TextTokenizer(ChatGLM2TextTokenizer):
    """As the base class."""
