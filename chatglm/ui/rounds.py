"""What a conversation is made of: questions and the answers to them, as data that a file can hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from chatglm.errors import InvalidRequestError

if TYPE_CHECKING:
    from chatglm.generation.deltas import Delta, FinishReason

FINISH_REASONS = ("stop", "length", "cancelled", "deadline", "error")


@dataclass(frozen=True)
class Reply:
    """An answer, or what there is of it.

    Attributes:
        text: the joined deltas.
        finish_reason: as in `Delta`; None while it is being generated.
        prompt_tokens, completion_tokens, dropped_rounds: as in the latest `Delta`; 0 before the first.
        error: why it failed; empty if it did not.
        first_s, latest_s: seconds from the question to the first and to the latest delta.
    """

    text: str = ""
    finish_reason: FinishReason | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    dropped_rounds: int = 0
    error: str = ""
    first_s: float = 0.0
    latest_s: float = 0.0

    @property
    def is_usable(self) -> bool:
        """Whether it joins the messages: it did not fail, and was not stopped before there was text."""
        return not self.error and (bool(self.text) or self.finish_reason not in (None, "cancelled"))

    @property
    def is_cut(self) -> bool:
        """Whether more of it could be asked for: there is text, and something other than the model ended it."""
        return bool(self.text) and self.finish_reason not in (None, "stop")

    @property
    def tokens_per_second(self) -> float | None:
        """Speed after the first token, which costs the whole prompt; None with fewer than two tokens."""
        elapsed = self.latest_s - self.first_s
        return (self.completion_tokens - 1) / elapsed if self.completion_tokens > 1 and elapsed > 0 else None

    def extended(self, delta: Delta, seconds: float) -> Reply:
        """With a delta that came `seconds` after the question."""
        return Reply(
            self.text + delta.text,
            delta.finish_reason,
            delta.prompt_tokens,
            delta.completion_tokens,
            delta.dropped_rounds,
            first_s=self.first_s or seconds,
            latest_s=seconds,
        )


@dataclass(frozen=True)
class Round:
    """A question and the answers to it: one, and one more for each retry; `selected` is the index of the valid one."""

    question: str
    versions: tuple[Reply, ...] = ()
    selected: int = 0

    @property
    def reply(self) -> Reply:
        return self.versions[self.selected]

    def replaced(self, reply: Reply) -> Round:
        """With another reply in the place of the valid one."""
        versions = list(self.versions)
        versions[self.selected] = reply
        return replace(self, versions=tuple(versions))

    def to_json(self) -> dict[str, Any]:
        return {
            "question": self.question,
            "versions": [asdict(reply) for reply in self.versions],
            "selected": self.selected,
        }


def round_from_json(data: Any) -> Round:
    """The inverse of `Round.to_json`; raises InvalidRequestError for anything else."""
    question, versions, selected = _fields(data, question=str, versions=list, selected=int)
    if not 0 <= selected < len(versions):
        raise InvalidRequestError("A round has no answer, or its selected one is missing.")
    return Round(question, tuple(_reply_from_json(version) for version in versions), selected)


def _reply_from_json(data: Any) -> Reply:
    (text,) = _fields(data, text=str)
    known = {field.name: data[field.name] for field in fields(Reply) if field.name in data}
    reply = Reply(**{**known, "text": text})
    numbers = (reply.prompt_tokens, reply.completion_tokens, reply.dropped_rounds, reply.first_s, reply.latest_s)
    if reply.finish_reason not in FINISH_REASONS or not isinstance(reply.error, str):
        raise InvalidRequestError("An answer does not say how it ended.")
    if not all(isinstance(number, (int, float)) and 0 <= number < 1e12 for number in numbers):
        raise InvalidRequestError("A figure of an answer is not a number.")
    return reply


def _fields(data: Any, **types: type) -> Sequence[Any]:
    if not isinstance(data, Mapping) or not all(isinstance(data.get(name), kind) for name, kind in types.items()):
        raise InvalidRequestError(f"It lacks {', '.join(types)}.")
    return [data[name] for name in types]
