"""A conversation: messages, and upstream's `[(query, answer), ...]` history, which is converted once at the edge."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from chatglm.errors import InvalidRequestError

Role = Literal["system", "user", "assistant", "observation"]
History = list[tuple[str, str]]


@dataclass(frozen=True)
class Message:
    """One utterance and who speaks; an observation is what a tool returned.

    `metadata`: the name of the tool that an answer calls with its content. `tools`: what a system message offers.
    """

    role: Role
    content: str
    metadata: str = ""
    tools: Sequence[Mapping[str, Any]] = ()


def check_history(history: Iterable[Sequence[str]] | None) -> History:
    """Copy a history of (query, answer) pairs; raises InvalidRequestError if it is no list of pairs of strings."""
    form = 'Give history as [["query", "answer"], ...].'
    if history is not None and not isinstance(history, Iterable):
        raise InvalidRequestError("history is not a list.", form)
    rounds: History = []
    for number, entry in enumerate(history or []):
        is_pair = isinstance(entry, (list, tuple)) and len(entry) == 2
        if not is_pair or not all(isinstance(part, str) for part in entry):
            raise InvalidRequestError(f"history[{number}] is not a pair of strings.", form)
        rounds.append((entry[0], entry[1]))
    return rounds


def to_messages(query: str, history: History, system: str | None = None) -> list[Message]:
    """Messages, oldest first, ending with the user's query; raises InvalidRequestError if it is no string."""
    if not isinstance(query, str):
        raise InvalidRequestError(f"The query must be a string, not {type(query).__name__}.")
    messages = [Message("system", system)] if system else []
    for past_query, answer in history:
        messages += [Message("user", past_query), Message("assistant", answer)]
    return [*messages, Message("user", query)]


def to_message(entry: Mapping[str, Any]) -> Message:
    """A message given as {"role": ..., "content": ...}, as transformers and later upstreams write it.

    Role "tool" is an observation; metadata and, of a system message, tools are optional. Other keys are ignored.
    Raises InvalidRequestError for another form.
    """
    form = 'Give a message as {"role": "user", "content": "..."}.'
    if not isinstance(entry, Mapping):
        raise InvalidRequestError("A message is no object with role and content.", form)
    role = "observation" if entry.get("role") == "tool" else entry.get("role")
    content, metadata = entry.get("content"), entry.get("metadata") or ""
    if role not in get_args(Role):
        raise InvalidRequestError(f"There is no role {role!r}.", f"The roles are {', '.join(get_args(Role))}.")
    if not isinstance(content, str) or not isinstance(metadata, str):
        raise InvalidRequestError("The content or metadata of a message is no string.", form)
    tools = (entry.get("tools") or ()) if role == "system" else ()
    if not isinstance(tools, (list, tuple)) or not all(isinstance(tool, Mapping) for tool in tools):
        raise InvalidRequestError("The tools of a message are no list of objects.", form)
    return Message(cast(Role, role), content, metadata, tuple(tools))
