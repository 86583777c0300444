"""ChatGLM3-6B's tokenizer for transformers 5."""

from __future__ import annotations

import re
from typing import Any

from chatglm.messages import Message
from chatglm.models.chatglm2.pretrained_tokenizer import SentencePieceTokenizer
from chatglm.models.chatglm3.template import encode_turn
from chatglm.models.chatglm3.tokenizer import ROLE_TOKENS, ChatGLM3TextTokenizer
from chatglm.models.library_tokenizer import RoleTokenizer

_ROLE = re.compile(f"({'|'.join(map(re.escape, ROLE_TOKENS))})")


class ChatGLM3Tokenizer(RoleTokenizer, SentencePieceTokenizer):
    """Text to token ids and back; raises CheckpointError for an unusable `vocab_file`. Padding is on the left.

    `encode_special_tokens`: role names inside a text that `encode` takes are role tokens; chat templates never do that.
    """

    text_tokenizer = ChatGLM3TextTokenizer

    def __init__(self, vocab_file: str | None = None, encode_special_tokens: bool = False, **kwargs: Any) -> None:
        self.encode_special_tokens = encode_special_tokens
        super().__init__(vocab_file, **kwargs)
        self.init_kwargs["encode_special_tokens"] = encode_special_tokens

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        if not self.encode_special_tokens:
            return super()._tokenize(text, **kwargs)
        parts = [part for part in _ROLE.split(text) if part]
        return [
            t
            for part in parts
            for t in ([part] if part in ROLE_TOKENS else super(ChatGLM3Tokenizer, self)._tokenize(part))
        ]

    def encode_turn(self, message: Message) -> list[int]:
        return encode_turn(self, message)
