"""The chat template of GLM-4: `[gMASK]<sop>`, a turn for each message, `<|assistant|>`.

A turn is its role token and `{metadata}\\n{content}`; a message without content makes none. The metadata of an answer
names the tool that it calls. Tools have a system turn of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from chatglm.messages import Message
from chatglm.models.encoded_prompt import EncodedPrompt, TemplateSizes
from chatglm.models.glm4.builtin_tools import describe_tools
from chatglm.models.role_turns import encode_turns

# The longest token is a run of 512 characters; messages without content add nothing.
SIZES = TemplateSizes(longest_token=512, least_round=0)


def encode_chat(tokenizer: Any, messages: Sequence[Message], limit: int) -> EncodedPrompt:
    """Prompt ids of a conversation, fewer than `limit`: see `encode_turns`. Typed role names stay text."""
    return encode_turns(tokenizer, messages, encode_turn, limit, SIZES)


def encode_turn(tokenizer: Any, message: Message) -> list[int]:
    """The ids of one message, with the tools that it offers; raises InvalidRequestError for a tool of another form."""
    ids: list[int] = []
    if message.tools:
        ids += [tokenizer.special_id("<|system|>"), *tokenizer.encode_plain(f"\n{describe_tools(message.tools)}")]
    if message.content:
        text = f"{message.metadata}\n{message.content}"
        ids += [tokenizer.special_id(f"<|{message.role}|>"), *tokenizer.encode_plain(text)]
    return ids
