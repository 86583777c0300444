"""Conversations as the models without role tokens know them: rounds of a query and an answer, then a query."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from chatglm.errors import InvalidRequestError
from chatglm.messages import Message
from chatglm.models.encoded_prompt import EncodedPrompt, TemplateSizes, encode_to_fit


@dataclass(frozen=True)
class Rounds:
    """System messages, complete rounds of (query, answer), and the query that waits for an answer."""

    system: list[str]
    rounds: list[tuple[str, str]]
    query: str


def to_rounds(messages: Sequence[Message]) -> Rounds:
    """Sort messages, oldest first, into rounds.

    System messages without text are left out. Neighbouring messages of one speaker are joined by newlines; an answer
    before any query gets an empty query. Raises InvalidRequestError unless it ends with a message of the user, or for
    tools, of which these models know nothing.
    """
    if any(one.role == "observation" or one.tools or one.metadata for one in messages):
        raise InvalidRequestError("This model cannot call tools.", "ChatGLM3-6B and GLM-4 can.")
    system = [message.content for message in messages if message.role == "system" and message.content]
    by_speaker = itertools.groupby((one for one in messages if one.role != "system"), key=lambda one: one.role)
    spoken = [Message(role, "\n".join(one.content for one in group)) for role, group in by_speaker]
    if not spoken or spoken[-1].role != "user":
        raise InvalidRequestError("The conversation does not end with a message of the user.")
    *earlier, query = spoken
    if earlier and earlier[0].role == "assistant":
        earlier.insert(0, Message("user", ""))
    pairs = zip(earlier[::2], earlier[1::2], strict=True)
    return Rounds(system, [(asked.content, answered.content) for asked, answered in pairs], query.content)


def encode_rounds(
    tokenizer: Any, rounds: Rounds, render: Callable[[Rounds], str], limit: int, sizes: TemplateSizes
) -> EncodedPrompt:
    """The prompt `render` writes, in fewer than `limit` ids: see `encode_to_fit`. No text becomes a control token."""

    def encode(dropped_rounds: int) -> list[int]:
        ids = tokenizer.encode_plain(render(replace(rounds, rounds=rounds.rounds[dropped_rounds:])))
        return tokenizer.build_inputs_with_special_tokens(ids)

    stays = "".join([*(f"{text}\n" for text in rounds.system), rounds.query])
    return encode_to_fit(tokenizer, encode, stays, rounds.rounds, limit, sizes)
