"""CodeGeeX2-6B's tokenizer for transformers 5."""

from __future__ import annotations

from chatglm.models.chatglm2.pretrained_tokenizer import ChatGLM2Tokenizer
from chatglm.models.codegeex2.tokenizer import CodeGeeX2TextTokenizer


class CodeGeeX2Tokenizer(ChatGLM2Tokenizer):
    """As ChatGLM2-6B's, but it may be padded on the right as well."""

    text_tokenizer = CodeGeeX2TextTokenizer
    pads_right = True
