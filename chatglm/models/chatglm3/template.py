"""The chat template of ChatGLM3-6B: `[gMASK] sop`, a turn for each message, `<|assistant|>`.

A turn is its role token, `{metadata}\\n` and the content, each encoded by itself. The metadata of an answer names the
tool that it calls; a system message is followed by the tools that it offers, as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from chatglm.messages import Message
from chatglm.models.encoded_prompt import EncodedPrompt, TemplateSizes
from chatglm.models.role_turns import encode_turns

# The longest piece has 16 characters; a turn has a role token and a newline.
SIZES = TemplateSizes(longest_token=16, least_round=2)


def encode_chat(tokenizer: Any, messages: Sequence[Message], limit: int) -> EncodedPrompt:
    """Prompt ids of a conversation, fewer than `limit`: see `encode_turns`. Typed role names stay text."""
    return encode_turns(tokenizer, messages, encode_turn, limit, SIZES)


def encode_turn(tokenizer: Any, message: Message) -> list[int]:
    """The ids of one message."""
    content = message.content
    if message.role == "system" and message.tools:
        content += "\n" + json.dumps(list(message.tools), indent=4, ensure_ascii=False)
    metadata_ids, content_ids = tokenizer.encode_plain(f"{message.metadata}\n"), tokenizer.encode_plain(content)
    return [tokenizer.special_id(f"<|{message.role}|>"), *metadata_ids, *content_ids]
