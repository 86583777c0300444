"""The tokenizer of ChatGLM3-6B: that of ChatGLM2-6B with a token for each role; decoding writes special tokens."""

from __future__ import annotations

from chatglm.models.chatglm2.tokenizer import ChatGLM2TextTokenizer

ROLE_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")


class ChatGLM3TextTokenizer(ChatGLM2TextTokenizer):
    """As the base class."""

    special_names = (*ChatGLM2TextTokenizer.special_names, *ROLE_TOKENS)
    shows_special = True
