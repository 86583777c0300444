"""What the web page does with a conversation: ask, ask again, take back, stop; streamed, for many visitors at once.

Knows: a visitor's running answer, when the page is drawn anew, what is kept of a stopped or failed answer. Does not
know Gradio: a visitor is a key, and what to draw is a `View`. Rounds are handed in and out, nothing is kept here.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from chatglm.errors import ChatGLMError
from chatglm.messages import History
from chatglm.ui.gradio.texts import Language, sentence

if TYPE_CHECKING:
    from chatglm.generation.deltas import Delta
    from chatglm.pipeline import Pipeline

# Text comes faster than a page can be drawn, and every drawing costs the server time.
DRAW_EVERY_SECONDS = 0.05


@dataclass(frozen=True)
class View:
    """What a visitor sees.

    Attributes:
        history: the finished rounds, and the one that is being answered once it has text.
        question: asked, without any answer yet.
        note: the status line.
        is_running: an answer is being made.
        returned: a question that was not answered, to be put back where it was typed.
        trouble: why, if that was an error.
    """

    history: History
    question: str | None = None
    note: str = ""
    is_running: bool = False
    returned: str | None = None
    trouble: str = ""


@dataclass
class _Progress:
    """An answer while it is being made."""

    text: str = ""
    last: Delta | None = None
    first_text_at: float | None = None
    drawn_at: float = field(default_factory=time.monotonic)

    def add(self, delta: Delta) -> None:
        self.text += delta.text
        self.last = delta
        if self.first_text_at is None and delta.text:
            self.first_text_at = time.monotonic()

    def is_due(self) -> bool:
        """Whether the page should be drawn again; then it counts as drawn."""
        now = time.monotonic()
        is_due = bool(self.text) and now - self.drawn_at >= DRAW_EVERY_SECONDS
        self.drawn_at = now if is_due else self.drawn_at
        return is_due


class WebChat:
    """The conversations of all visitors with one pipeline.

    Args:
        pipeline: a loaded model.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._running: dict[str, threading.Event] = {}
        self._lock = threading.Lock()

    def ask(
        self, visitor: str, question: str, history: History, options: Mapping[str, Any], language: Language
    ) -> Iterator[View]:
        """Answer `question` behind `history`; what of it is there is shown again and again.

        A running answer of the same visitor is ended first. Leaving the iteration ends this one.
        """
        if not question.strip():
            yield View(history)
            return
        with self._cancel_event(visitor) as cancel:
            yield View(history, question, sentence("waiting", language), is_running=True)
            progress = _Progress()
            try:
                for delta in self._pipeline.stream(question, history, cancel=cancel, **options):
                    progress.add(delta)
                    if progress.is_due():
                        note = self._note(progress, language)
                        yield View([*history, (question, progress.text)], note=note, is_running=True)
            except ChatGLMError as error:
                yield View(history, returned=question, trouble=str(error))
                return
            if self._is_current(visitor, cancel):  # else somebody else draws already
                yield self._end(question, history, progress, language)

    def stop(self, visitor: str) -> None:
        """End the visitor's answer within a token; its text is kept."""
        with self._lock:
            cancel = self._running.get(visitor)
        if cancel is not None:
            cancel.set()

    def forget(self, visitor: str) -> None:
        """The visitor's answer, if one is being made, is wanted no more."""
        with self._lock:
            cancel = self._running.pop(visitor, None)
        if cancel is not None:
            cancel.set()

    def _end(self, question: str, history: History, progress: _Progress, language: Language) -> View:
        reason = progress.last.finish_reason if progress.last else "cancelled"
        if reason == "cancelled" and not progress.text:
            return View(history, note=sentence("stopped", language), returned=question)
        notes = [self._note(progress, language)]
        if reason in ("cancelled", "length"):
            notes.append(sentence("stopped" if reason == "cancelled" else "length", language))
        if not progress.text:
            notes.append(sentence("empty", language))
        return View([*history, (question, progress.text)], note=" · ".join(filter(None, notes)))

    def _note(self, progress: _Progress, language: Language) -> str:
        last = progress.last
        if last is None:
            return ""
        notes = [self._pipeline.name]
        elapsed = time.monotonic() - (progress.first_text_at or time.monotonic())
        if elapsed > 0 and last.completion_tokens > 1:
            notes.append(sentence("speed", language, rate=last.completion_tokens / elapsed))
        used, limit = last.prompt_tokens + last.completion_tokens, self._pipeline.context_limit
        notes.append(sentence("context", language, used=used, limit=limit))
        if last.dropped_rounds:
            notes.append(sentence("dropped", language, rounds=last.dropped_rounds))
        return " · ".join(notes)

    @contextmanager
    def _cancel_event(self, visitor: str) -> Iterator[threading.Event]:
        """The visitor's cancel flag inside the block; one that was there before is set."""
        cancel = threading.Event()
        with self._lock:
            before = self._running.get(visitor)
            self._running[visitor] = cancel
        if before is not None:
            before.set()
        try:
            yield cancel
        finally:
            cancel.set()
            with self._lock:
                if self._running.get(visitor) is cancel:
                    del self._running[visitor]

    def _is_current(self, visitor: str, cancel: threading.Event) -> bool:
        with self._lock:
            return self._running.get(visitor) is cancel
