"""The Gradio page: one component with the page's HTML, and what the server does for it.

The browser keeps the conversations and sends one with each request; the server holds only answers being generated.
"""

from __future__ import annotations

import re
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from chatglm.errors import ChatGLMError, InvalidRequestError
from chatglm.ui.error_texts import Language, error_text
from chatglm.ui.gradio.conversation_html import pending_html, round_html, rounds_html
from chatglm.ui.gradio.page_texts import STARTERS, TEXTS, language_of
from chatglm.ui.session import ChatSession, Pending, answer_in_background
from chatglm.ui.transcript import Transcript, read_transcript, transcript_of

if TYPE_CHECKING:
    from chatglm.generation.deltas import Delta
    from chatglm.pipeline import Pipeline

TITLE = "ChatGLM-6B"
FOLDER = Path(__file__).parent / "page"
# Together they are one script; the first holds what all use, the last begins.
SCRIPTS = ("basics", "storage", "conversations", "answers", "scrolling", "messages", "files", "settings", "events")
THEME = gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["monospace"])  # of the page for --auth
SETTINGS = ("max_length", "temperature", "top_p", "top_k", "seed")
# What a visitor can save: media type, suffix, content.
FORMS: dict[str, tuple[str, str, Callable[[Transcript], str]]] = {
    "html": ("text/html", "html", Transcript.html),
    "markdown": ("text/markdown", "md", Transcript.markdown),
    "json": ("application/json", "json", Transcript.json),
}
SURROGATE = re.compile("[\ud800-\udfff]")
MAX_CHARACTERS = 10_000_000  # browsers keep less than that
# Text comes faster than a page can be drawn, and every drawing costs the server time: at most a fifth of it.
DRAW_EVERY_S = 0.1
PAUSE_PER_DRAWING = 4
BEAT_S = 1.0
CLOSE_S = 2.0
FLUSH_S = 0.3  # in which Gradio passes the last messages on; it waits for open streams for five seconds otherwise


class GradioPage:
    """The page of one pipeline; `defaults` are initial settings by parameter, None and missing ones the model's."""

    def __init__(self, pipeline: Pipeline, defaults: Mapping[str, Any]) -> None:
        self._pipeline = pipeline
        self._limit = pipeline.context_limit
        self._running: dict[str, ChatSession] = {}  # by the key that the browser has given the answer
        self._changed = threading.Condition()
        given = {**pipeline.defaults, **{name: value for name, value in defaults.items() if value is not None}}
        with gr.Blocks(title=TITLE, fill_height=True, analytics_enabled=False) as self.blocks:
            chat = gr.HTML(
                html_template=(FOLDER / "page.html").read_text(encoding="utf-8"),
                js_on_load="\n".join((FOLDER / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS),
                apply_default_css=False,
                server_functions=[_served(function) for function in (self.show, self.open, self.save, self.stop)],
                texts=TEXTS,
                starters=STARTERS,
                defaults={name: given.get(name) for name in (*SETTINGS, "system")},
                model={
                    "name": pipeline.name,
                    "details": pipeline.precision.split(" (")[0].replace(" on ", " · "),
                    "demo": pipeline.is_demo,
                },
                limit=self._limit,
            )
            chat.answer(
                self.answer,
                None,
                chat,
                show_progress="hidden",
                trigger_mode="multiple",
                concurrency_limit=None,
                api_visibility="private",
            )

    def close(self) -> None:
        """End all answers, which keep their text, and the server."""
        with self._changed:
            sessions = list(self._running.values())
            for session in sessions:
                session.stop()
            self._changed.wait_for(lambda: not self._running, CLOSE_S)
        if sessions:
            time.sleep(FLUSH_S)
        self.blocks.close(verbose=False)

    def answer(self, data: gr.EventData) -> Iterator[dict[str, Any]]:
        """Answer a question; yields the round as it grows. Leaving the iteration ends the answer."""
        request = _object(data._data)
        language = language_of(request.get("language"))
        try:
            key = _text(request, "key")
            session, index, deltas = self._start(request)
            assert session.pending is not None
            with self._registered(key, session):
                yield from _messages(key, session, session.pending, index, deltas, language, self._limit)
        except Exception as error:
            yield {"key": request.get("key"), "running": False, "error": _told(error, language)}

    def stop(self, request: dict[str, Any]) -> None:
        """End an answer and keep its text."""
        with self._changed:
            session = self._running.get(str(request.get("key")))
        if session is not None:
            session.stop()

    def show(self, request: dict[str, Any]) -> dict[str, Any]:
        """A conversation as HTML."""
        session = self._session(request)
        return {"html": rounds_html(session.rounds, language_of(request.get("language")), self._limit, session.is_full)}

    def open(self, request: dict[str, Any]) -> dict[str, Any]:
        """A saved file as a conversation."""
        transcript = read_transcript(_text(request, "file").encode())
        return {
            "system": transcript.system,
            "settings": dict(transcript.settings),
            "rounds": [round_.to_json() for round_ in transcript.rounds],
        }

    def save(self, request: dict[str, Any]) -> dict[str, Any]:
        """A conversation as a file, which the browser writes."""
        if (form := _text(request, "form")) not in FORMS:
            raise InvalidRequestError(f"There is no form {form!r}.")
        kind, suffix, write = FORMS[form]
        transcript = replace(_transcript(request), model_name=self._pipeline.name)
        name = f"chatglm-{datetime.now():%Y%m%d-%H%M%S}.{suffix}"
        return {"name": name, "type": kind, "text": write(transcript)}

    def _session(self, request: Mapping[str, Any]) -> ChatSession:
        language = language_of(request.get("language"))
        session = ChatSession(self._pipeline, error_text=lambda error: error_text(error, language))
        session.open(_transcript(request))
        return session

    def _start(self, request: Mapping[str, Any]) -> tuple[ChatSession, int, Generator[Delta]]:
        """The session of a request, the number of the round that is answered, and the answer."""
        session = self._session(request)
        action, index = request.get("action"), request.get("index")
        if action == "ask":
            return session, len(session.rounds), session.ask(_text(request, "question"))
        if not isinstance(index, int) or not 0 <= index < len(session.rounds):
            raise InvalidRequestError("There is no such round.")
        if action == "edit":
            return session, index, session.edit(index, _text(request, "question"))
        if action == "continue":
            return session, index, session.continue_answer(index)
        if action == "retry":
            return session, index, session.retry(index)
        raise InvalidRequestError(f"There is no action {action!r}.")

    @contextmanager
    def _registered(self, key: str, session: ChatSession) -> Iterator[None]:
        """Let `stop` find the session inside the block; it has stopped after it."""
        with self._changed:
            self._running[key] = session
        try:
            yield
        finally:
            session.stop()
            with self._changed:
                self._running.pop(key, None)
                self._changed.notify_all()


def _messages(
    key: str,
    session: ChatSession,
    pending: Pending,
    index: int,
    deltas: Generator[Delta],
    language: Language,
    limit: int,
) -> Iterator[dict[str, Any]]:
    """What the browser gets while an answer is generated, and at last the finished round.

    The last `round` is None if what was there before stays.
    """
    answer_in_background(deltas)
    text: str | None = pending.reply.text
    while text is not None:
        started = time.monotonic()
        reply, round_ = pending.reply, session.round_so_far
        drawn = pending_html(pending.round.question, reply, pending.queue_place, index, language, limit)
        pause = PAUSE_PER_DRAWING * (time.monotonic() - started)
        yield {
            "key": key,
            "running": True,
            "index": index,
            "html": drawn,
            "place": pending.queue_place,
            "round": round_ and round_.to_json(),
            "beat": round(started, 1),
        }
        time.sleep(min(BEAT_S, max(DRAW_EVERY_S, pause)))
        text = session.wait(len(text), BEAT_S)
    if session.rounds is pending.before:
        error = session.last_reply.error if session.last_reply is not None else ""
        yield {"key": key, "running": False, "index": index, "html": "", "round": None, "error": error}
        return
    answered = session.rounds[index]
    drawn = round_html(answered, index, language, limit, is_full=session.is_full(answered))
    yield {"key": key, "running": False, "index": index, "html": drawn, "round": answered.to_json(), "error": ""}


def _served(function: Callable[[dict[str, Any]], Any]) -> Callable[[Any], Any]:
    """For a browser's call: any request gives an answer, which holds an error if it cannot be served."""

    def serve(request: Any) -> Any:
        try:
            return function(_object(request)) or {}
        except Exception as error:
            return {"error": _told(error, language_of(_object(request).get("language")))}

    serve.__name__ = function.__name__
    return serve


def _told(error: Exception, language: Language) -> str:
    """What the page says of an error; one that is not ours goes to the server's terminal too."""
    if not isinstance(error, ChatGLMError):
        traceback.print_exception(error)
    return error_text(error, language)


def _object(data: Any) -> dict[str, Any]:
    return data if isinstance(data, dict) else {}


def _text(request: Mapping[str, Any], name: str) -> str:
    value = request.get(name)
    if not isinstance(value, str) or not value.strip() or len(value) > MAX_CHARACTERS or SURROGATE.search(value):
        raise InvalidRequestError(f"{name} is empty, too long or no Unicode text.")
    return value


def _transcript(request: Mapping[str, Any]) -> Transcript:
    return transcript_of(request.get("conversation"))
