"""The chat template of ChatGLM2-6B: `[gMASK] sop` and numbered rounds, also where there is only one.

    [Round 1] \\n\\n 问：{query} \\n\\n 答：{answer} \\n\\n [Round 2] \\n\\n 问：{query} \\n\\n 答：

The model was trained without system messages; ours, each ended by an empty line, are moved in front, in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from chatglm.messages import Message
from chatglm.models.encoded_prompt import EncodedPrompt, TemplateSizes
from chatglm.models.rounds import Rounds, encode_rounds, to_rounds

# The longest piece has 16 characters; the marks of a round and its empty lines are more than 6 tokens.
SIZES = TemplateSizes(longest_token=16, least_round=6)


def render(messages: Sequence[Message]) -> str:
    """Prompt text of a conversation; raises InvalidRequestError unless it ends with a message of the user."""
    return _render(to_rounds(messages))


def encode_chat(tokenizer: Any, messages: Sequence[Message], limit: int) -> EncodedPrompt:
    """Prompt ids of a conversation, oldest message first, fewer than `limit`; the oldest rounds are dropped to fit.

    Remaining rounds are renumbered from 1; system messages stay. Raises InvalidRequestError unless the user's message
    is last, PromptTooLongError if the last query (with system messages) does not fit by itself.
    """
    return encode_rounds(tokenizer, to_rounds(messages), _render, limit, SIZES)


def _render(chat: Rounds) -> str:
    system = "".join(f"{text}\n\n" for text in chat.system)
    rounds = [f"[Round {i}]\n\n问：{asked}\n\n答：{answered}\n\n" for i, (asked, answered) in enumerate(chat.rounds, 1)]
    return f"{system}{''.join(rounds)}[Round {len(rounds) + 1}]\n\n问：{chat.query}\n\n答："
