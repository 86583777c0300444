"""A conversation with a pipeline: the rounds so far, the next answer, the same question once more.

Knows: what is kept of a stopped or failed answer. Does not know terminals.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from chatglm.messages import History

if TYPE_CHECKING:
    from chatglm.generation.deltas import Delta, FinishReason
    from chatglm.pipeline import Pipeline


@dataclass(frozen=True)
class Answer:
    """What came of a question.

    Attributes:
        text: the whole answer, as it went into the history.
        finish_reason: why it ended: "stop", "length" or "cancelled".
        prompt_tokens, completion_tokens, dropped_rounds: as in `Delta`; 0 when stopped before any of them was known.
    """

    text: str
    finish_reason: FinishReason
    prompt_tokens: int = 0
    completion_tokens: int = 0
    dropped_rounds: int = 0

    @classmethod
    def of(cls, text: str, last: Delta | None) -> Answer:
        """From the joined text and the last delta that came; without a finish reason it was cut off."""
        if last is None:
            return cls(text, "cancelled")
        reason = last.finish_reason or "cancelled"
        return cls(text, reason, last.prompt_tokens, last.completion_tokens, last.dropped_rounds)


class Conversation:
    """Rounds with one model.

    Attributes:
        history: the rounds so far, oldest first.
        options: keyword arguments of every `Pipeline.stream`.
        model_name: who answers.

    Args:
        pipeline: a loaded model.
        options: see above.
    """

    def __init__(self, pipeline: Pipeline, options: Mapping[str, Any]) -> None:
        self._pipeline = pipeline
        self.options = dict(options)
        self.model_name = pipeline.name
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.history: History = []
        self._past: History = []
        self._last_query: str | None = None
        self._num_retries = 0

    @property
    def can_retry(self) -> bool:
        """Whether a question was asked."""
        return self._last_query is not None

    def ask(self, query: str, show: Callable[[Delta], None], cancel: threading.Event) -> Answer:
        """Answer `query`; the round joins the history.

        Args:
            query: what the user says.
            show: called with each delta.
            cancel: ends the answer; so does a KeyboardInterrupt. The text until then is kept, unless there is none.

        Raises:
            ChatGLMError: there is no answer; the history is as it was, and `retry` asks again.
        """
        self._last_query, self._past, self._num_retries = query, self.history, 0
        return self._answer(show, cancel)

    def retry(self, show: Callable[[Delta], None], cancel: threading.Event) -> Answer:
        """Answer the last question again, differently. Arguments and errors as `ask`; needs `can_retry`."""
        self._num_retries += 1
        return self._answer(show, cancel)

    def _answer(self, show: Callable[[Delta], None], cancel: threading.Event) -> Answer:
        assert self._last_query is not None
        text, last = "", None
        # Ctrl+C pressed again raises KeyboardInterrupt: it does not wait for the step under way.
        with suppress(KeyboardInterrupt):
            for delta in self._pipeline.stream(self._last_query, self._past, cancel=cancel, **self._options_now()):
                text, last = text + delta.text, delta
                show(delta)
        answer = Answer.of(text, last)
        if text or answer.finish_reason != "cancelled":  # else a stopped retry leaves the answer it was to replace
            self.history = [*self._past, (self._last_query, text)]
        return answer

    def _options_now(self) -> dict[str, Any]:
        """With a seed of its own for every retry: a fixed `--seed` would give the same answer again."""
        seed = self.options.get("seed")
        return {**self.options, "seed": None if seed is None else seed + self._num_retries}
