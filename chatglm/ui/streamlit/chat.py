"""One person's chat on the page: the rounds so far, and the answer under way.

Knows: what is kept of a stopped or failed answer, and how many rounds. Does not know Streamlit.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from chatglm.errors import ChatGLMError
from chatglm.messages import History, to_messages
from chatglm.ui.conversation import Answer
from chatglm.ui.terminal.loop import LENGTH_REACHED, notes_on

if TYPE_CHECKING:
    from chatglm.engine import Handle
    from chatglm.generation.deltas import Delta
    from chatglm.pipeline import Pipeline

# As upstream's page.
MAX_ROUNDS = 20
AT_LIMIT = "（已达到长度上限 / the answer reached the length limit, see max_length）"


@dataclass(frozen=True)
class Round:
    """A question and what came of it.

    Attributes:
        query: the question.
        answer: its text, perhaps not all of it.
        notes: what is worth knowing about it.
        error: why it failed; empty if it did not.
    """

    query: str
    answer: str
    notes: tuple[str, ...] = ()
    error: str = ""

    @property
    def is_told(self) -> bool:
        """Whether the model hears of it later: not of a failure, nor of a question that was taken back."""
        return not self.error and bool(self.answer)


class Answering:
    """An answer under way, gathered by a thread of its own: it goes on while the page is drawn anew.

    Args:
        query: the question.
        handle: the request.
    """

    def __init__(self, query: str, handle: Handle) -> None:
        self.query = query
        self._handle = handle
        self._news = threading.Condition()
        self._text, self._is_done = "", False
        self._last: Delta | None = None
        self._error: Exception | None = None
        threading.Thread(target=self._gather, name="answer of the page", daemon=True).start()

    @property
    def is_done(self) -> bool:
        """Whether there will be no more text."""
        with self._news:
            return self._is_done

    def wait(self, num_seen: int, timeout: float) -> tuple[str, bool]:
        """Wait for more text than `num_seen` characters, for the end, or for `timeout` seconds.

        Returns:
            the text so far, and whether it is all.
        """
        with self._news:
            self._news.wait_for(lambda: self._is_done or len(self._text) > num_seen, timeout)
            return self._text, self._is_done

    def cancel(self) -> None:
        """End it. Does not wait for the step under way: whatever that one brings is left out."""
        self._handle.cancel()
        with self._news:
            self._is_done = True
            self._news.notify_all()

    def outcome(self) -> Round:
        """What came of it, once it is done."""
        with self._news:
            if self._error is not None and not isinstance(self._error, ChatGLMError):
                raise self._error
            if self._error is not None:
                return Round(self.query, self._text, error=str(self._error))
            return Round(self.query, self._text, _notes(Answer.of(self._text, self._last)))

    def _gather(self) -> None:
        error: Exception | None = None
        try:
            for delta in self._handle:
                with self._news:
                    if self._is_done:
                        return
                    self._text, self._last = self._text + delta.text, delta
                    self._news.notify_all()
        except Exception as caught:  # told in the thread of the page
            error = caught
        with self._news:
            if not self._is_done:
                self._error, self._is_done = error, True
            self._news.notify_all()


class Chat:
    """The rounds of one session.

    Attributes:
        rounds: the latest of them, oldest first.
        num_forgotten: how many older ones fell out.
        answering: the answer under way, if any.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget everything; an answer under way ends."""
        if answering := getattr(self, "answering", None):
            answering.cancel()
        self.rounds: list[Round] = []
        self.num_forgotten = 0
        self.answering: Answering | None = None

    @property
    def history(self) -> History:
        """What the model is told of the rounds."""
        return [(round_.query, round_.answer) for round_ in self.rounds if round_.is_told]

    def ask(self, pipeline: Pipeline, query: str, options: Mapping[str, Any]) -> None:
        """Begin to answer `query`; an answer under way ends. A refusal becomes a round with an error."""
        self.stop()
        try:
            handle = pipeline.submit(
                to_messages(query, self.history, options.get("system")),
                **{k: v for k, v in options.items() if k != "system"},
            )
        except ChatGLMError as error:
            self._keep(Round(query, "", error=str(error)))
        else:
            self.answering = Answering(query, handle)

    def stop(self) -> None:
        """End the answer under way, if any, and keep its text."""
        if self.answering is not None:
            self.answering.cancel()
            self.settle()

    def settle(self) -> None:
        """Make a round of an answer that is done."""
        if self.answering is not None and self.answering.is_done:
            answering, self.answering = self.answering, None
            self._keep(answering.outcome())

    def _keep(self, round_: Round) -> None:
        self.rounds.append(round_)
        num_too_many = max(0, len(self.rounds) - MAX_ROUNDS)
        del self.rounds[:num_too_many]
        self.num_forgotten += num_too_many


def _notes(answer: Answer) -> tuple[str, ...]:
    """Those of the terminal chat, with the slider in the place of the flag."""
    return tuple(AT_LIMIT if note == LENGTH_REACHED else note for note in notes_on(answer))
