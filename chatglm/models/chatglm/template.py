"""The chat template of ChatGLM-6B: a conversation as one prompt.

`{query}` alone or, after earlier rounds, lines `[Round 0]`, `问：{query}`, `答：{answer}`, ..., `问：{query}`, `答：`.
The model was trained without system messages; ours, each ended by a newline, are moved in front, in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from chatglm.messages import Message
from chatglm.models.encoded_prompt import EncodedPrompt, TemplateSizes
from chatglm.models.rounds import Rounds, encode_rounds, to_rounds

# The longest token is the run of 80 blanks; `[Round 0]`, `问：`, `答：` and their line ends are more than 6 tokens.
LONGEST_TOKEN = 80
SIZES = TemplateSizes(LONGEST_TOKEN, least_round=6)


def render(messages: Sequence[Message]) -> str:
    """Prompt text of a conversation; raises InvalidRequestError unless it ends with a message of the user."""
    return _render(to_rounds(messages))


def encode_chat(tokenizer: Any, messages: Sequence[Message], limit: int) -> EncodedPrompt:
    """Prompt ids of a conversation, oldest message first, fewer than `limit`; the oldest rounds are dropped to fit.

    Text such as `[gMASK]<sop>` stays text; where none is spelled the ids equal `tokenizer.encode(render(messages))`.
    Remaining rounds are renumbered from 0; the system message stays. Raises InvalidRequestError unless the user's
    message is last, PromptTooLongError if the last query (with the system message) does not fit by itself.
    """
    return encode_rounds(tokenizer, to_rounds(messages), _render, limit, SIZES)


def _render(chat: Rounds) -> str:
    system = "".join(f"{text}\n" for text in chat.system)
    if not chat.rounds:
        return system + chat.query
    earlier = "".join(f"[Round {i}]\n问：{query}\n答：{answer}\n" for i, (query, answer) in enumerate(chat.rounds))
    return f"{system}{earlier}[Round {len(chat.rounds)}]\n问：{chat.query}\n答："
