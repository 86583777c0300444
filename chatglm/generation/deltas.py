"""An answer as it streams (`Delta`) and as a whole (`Completion`)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length", "cancelled", "deadline", "error"]


@dataclass(frozen=True)
class Delta:
    """New text of an answer, perhaps empty; `finish_reason` is None until the last delta.

    `prompt_tokens` includes special tokens, `completion_tokens` no end token. `dropped_rounds`: oldest ones left out.
    `cached_tokens`: of the prompt, whose keys and values were known from another request.
    """

    text: str
    finish_reason: FinishReason | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    dropped_rounds: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True)
class Completion:
    """A whole answer; attributes as in `Delta`."""

    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    dropped_rounds: int
    cached_tokens: int


def fold(deltas: Iterable[Delta]) -> Completion:
    """The whole answer of a finished stream of deltas."""
    texts, last = [], Delta("")
    for last in deltas:
        texts.append(last.text)
    assert last.finish_reason is not None, "the stream has not finished"
    return Completion(**{**vars(last), "text": "".join(texts)})
