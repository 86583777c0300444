"""A list of messages as query, history and system: the form in which the pipeline is asked.

Knows: who may speak when. Does not know prompts: the family's template makes them.

    system, developer        joined, a line each, wherever they stand
    user, user               one query, a line each; assistant likewise
    assistant before user    a round with an empty query
    ... user                 the query; somebody else at the end is refused
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from chatglm.messages import History, Message
from chatglm.serving.errors import InvalidFieldError


class Conversation(NamedTuple):
    """What `Pipeline.submit` takes."""

    query: str
    history: History
    system: str | None


def to_conversation(messages: Sequence[Message]) -> Conversation:
    """Sort messages, oldest first.

    Raises:
        InvalidFieldError: the last one who speaks is not the user, or says nothing.
    """
    system = [message.content for message in messages if message.role == "system" and message.content]
    spoken = [message for message in messages if message.role != "system"]
    if not spoken or spoken[-1].role != "user":
        raise InvalidFieldError("The last message must be the user's.", "messages")
    turns = [
        (role, "\n".join(message.content for message in group))
        for role, group in groupby(spoken, key=lambda message: message.role)
    ]
    *earlier, (_, query) = turns
    if not query:
        raise InvalidFieldError("The last message must not be empty.", "messages")
    if earlier and earlier[0][0] == "assistant":
        earlier.insert(0, ("user", ""))
    history = [(asked, answered) for (_, asked), (_, answered) in zip(earlier[::2], earlier[1::2], strict=True)]
    return Conversation(query, history, "\n".join(system) or None)
