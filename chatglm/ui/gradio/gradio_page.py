"""The Gradio page: its layout and the handlers of its events. Its only state of a visitor is the list of rounds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from chatglm.errors import ChatGLMError, InvalidRequestError
from chatglm.generation.config import CHAT_DEFAULTS
from chatglm.messages import History
from chatglm.ui.gradio.page_texts import CHINESE, ENGLISH, EXAMPLES, Language, language_of, message
from chatglm.ui.markdown import inert_markdown, message_of_inert_markdown
from chatglm.ui.rounds import Reply
from chatglm.ui.session import ChatSession, Pending
from chatglm.ui.transcript import Transcript

if TYPE_CHECKING:
    from chatglm.generation.deltas import Delta
    from chatglm.pipeline import Pipeline

TITLE = "ChatGLM-6B"
WORDS: Any = gr.I18n(zh=CHINESE, en=ENGLISH)  # its lazy texts are no str to a type checker
FONTS = ["system-ui", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", "sans-serif"]
MONO_FONTS = ["ui-monospace", "Consolas", "Noto Sans Mono CJK SC", "monospace"]
THEME = gr.themes.Soft(primary_hue="blue", neutral_hue="slate", radius_size="md", font=FONTS, font_mono=MONO_FONTS)
CSS = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
LATEX: list[dict[str, str | bool]] = [
    {"left": "$$", "right": "$$", "display": True},
    {"left": "\\[", "right": "\\]", "display": True},
    {"left": "\\(", "right": "\\)", "display": False},
    {"left": "$", "right": "$", "display": False},
]
TOGGLE_THEME = "() => { document.body.classList.toggle('dark') }"
# The browser writes the file, so that nothing is written to the server's disk.
SAVE_FILE = """(file) => {
    if (!file || !file.text) return
    const link = document.createElement('a')
    link.href = URL.createObjectURL(new Blob([file.text], {type: file.type}))
    link.download = file.name
    link.click()
    URL.revokeObjectURL(link.href)
}"""
# What a visitor can save: media type, suffix, content.
FORMS: dict[str, tuple[str, str, Callable[[Transcript], str]]] = {
    "html": ("text/html", "html", Transcript.html),
    "markdown": ("text/markdown", "md", Transcript.markdown),
    "json": ("application/json", "json", Transcript.json),
}
# Text comes faster than a page can be drawn, and every drawing costs the server time.
DRAW_EVERY_S = 0.05
SEED = 4  # its place among the settings


class GradioPage:
    """The page of one pipeline.

    Args:
        pipeline: a loaded model.
        defaults: initial values of the sliders by parameter; None and missing ones are the model's.
        max_running: visitors answered at once.
    """

    def __init__(self, pipeline: Pipeline, defaults: Mapping[str, Any], max_running: int) -> None:
        self._pipeline = pipeline
        self._running: dict[str, ChatSession] = {}  # by visitor
        self._lock = threading.Lock()
        self._defaults = {**pipeline.defaults, **{key: value for key, value in defaults.items() if value is not None}}
        with gr.Blocks(title=TITLE, fill_height=True, analytics_enabled=False) as self.blocks:
            self._draw()
            self._connect(max_running)
        self.blocks.queue(default_concurrency_limit=max_running)

    def _draw(self) -> None:
        self._history = gr.State([])
        self._file = gr.JSON(visible="hidden")
        with gr.Row(elem_id="head"):
            gr.Markdown(f"## {TITLE}\n{self._pipeline.name}", elem_id="title")
            self._theme = gr.Button(WORDS("theme"), size="sm", scale=0, min_width=110, elem_id="theme")
            self._clear = gr.Button(WORDS("clear"), size="sm", scale=0, min_width=110, elem_id="clear")
        if self._pipeline.is_demo:
            gr.Markdown(WORDS("demo"), elem_id="demo-banner")
        self._chatbot = gr.Chatbot(
            elem_id="chat",
            show_label=False,
            height="calc(100dvh - 350px)",
            min_height=340,
            layout="bubble",
            latex_delimiters=LATEX,
            allow_tags=False,
            buttons=["copy"],
            editable="user",
            examples=[{"text": text, "display_text": name} for name, text in EXAMPLES],
        )
        self._note = gr.Markdown("", elem_id="note")
        self._box = gr.Textbox(
            elem_id="box",
            placeholder=WORDS("placeholder"),
            show_label=False,
            lines=1,
            max_lines=10,
            submit_btn=True,
            stop_btn=False,
            autofocus=True,
        )
        with gr.Accordion(WORDS("settings"), open=False, elem_id="settings"):
            self._draw_settings()
        gr.Markdown(WORDS("reload"), elem_id="reload")

    def _draw_settings(self) -> None:
        value = self._defaults
        with gr.Row():
            self._max_length = gr.Slider(
                0,
                4096,
                value["max_length"],
                step=1,
                elem_id="max-length",
                label=WORDS("max_length"),
                info=WORDS("max_length_info"),
            )
            self._top_p = gr.Slider(
                0, 1, value["top_p"], step=0.01, elem_id="top-p", label="Top P", info=WORDS("top_p_info")
            )
            self._temperature = gr.Slider(
                0,
                max(1.0, value["temperature"]),
                value["temperature"],
                step=0.01,
                elem_id="temperature",
                label="Temperature",
                info=WORDS("temperature_info"),
            )
        with gr.Row():
            self._top_k = gr.Slider(
                0, 100, value["top_k"], step=1, elem_id="top-k", label="Top K", info=WORDS("top_k_info")
            )
            # A number field cannot be empty: it would show 0, which is a seed like any other.
            self._seed = gr.Textbox(
                _as_text(value.get("seed")), elem_id="seed", label=WORDS("seed"), info=WORDS("seed_info")
            )
            self._system = gr.Textbox(
                _as_text(value.get("system")), elem_id="system", label=WORDS("system"), info=WORDS("system_info")
            )
        with gr.Accordion(WORDS("transcript"), open=False, elem_id="transcript"), gr.Row():
            self._save = {
                form: gr.Button(WORDS(f"export_{form}"), size="sm", elem_id=f"export-{form}") for form in FORMS
            }
            self._open = gr.UploadButton(WORDS("import"), size="sm", file_types=[".json"], elem_id="import")

    def _connect(self, max_running: int) -> None:
        settings = [self._max_length, self._top_p, self._temperature, self._top_k, self._seed, self._system]
        drawn = [self._chatbot, self._history, self._note, self._box]
        answer: dict[str, Any] = {
            "outputs": drawn,
            "concurrency_limit": max_running,
            "concurrency_id": "answers",
            "show_progress": "hidden",
        }
        self._box.submit(self.ask, [self._box, self._history, *settings], api_name="chat", **answer)
        self._chatbot.example_select(self.ask_example, [self._history, *settings], api_visibility="private", **answer)
        self._chatbot.retry(self.retry, [self._history, *settings], api_visibility="private", **answer)
        self._chatbot.edit(self.edit, [self._history, *settings], api_visibility="private", **answer)
        at_once: dict[str, Any] = {
            "outputs": drawn,
            "queue": False,
            "show_progress": "hidden",
            "api_visibility": "private",
        }
        self._box.stop(self.stop, queue=False, show_progress="hidden", api_visibility="private")
        self._chatbot.undo(self.undo, self._history, **at_once)
        for event in (self._clear.click, self._chatbot.clear):
            event(self.clear, **at_once)
        self._open.upload(self.open, [self._open, self._history], **at_once)
        self._theme.click(None, js=TOGGLE_THEME, api_visibility="private")
        for form, button in self._save.items():
            saving = button.click(
                self._saver(form), [self._history, self._system], self._file, queue=False, api_visibility="private"
            )
            saving.then(None, self._file, js=SAVE_FILE, api_visibility="private")

    def ask(self, question: str, request: gr.Request, history: History, *settings: Any) -> Iterator[list[Any]]:
        """Answer what was typed."""
        if question.strip():
            yield from self._answer(request, history, settings, question, lambda session: session.ask(question))
        else:
            yield _drawn(history)

    def ask_example(
        self, chosen: gr.SelectData, request: gr.Request, history: History, *settings: Any
    ) -> Iterator[list[Any]]:
        """Answer one of the starters."""
        yield from self.ask(chosen.value["text"], request, history, *settings)

    def retry(self, chosen: gr.RetryData, request: gr.Request, history: History, *settings: Any) -> Iterator[list[Any]]:
        """Answer a question again, sampled anew; later rounds go."""
        number = _round_of(chosen)
        # Earlier versions are not in the state, so the session could not count them for another seed.
        settings = (*settings[:SEED], "", *settings[SEED + 1 :])
        yield from self._answer(request, history, settings, None, lambda session: session.retry(number))

    def edit(self, changed: gr.EditData, request: gr.Request, history: History, *settings: Any) -> Iterator[list[Any]]:
        """Answer a changed question; later rounds go."""
        question, number = message_of_inert_markdown(str(changed.value)), _round_of(changed)
        if question.strip():
            start = lambda session: session.edit(number, question)  # noqa: E731
            yield from self._answer(request, history, settings, question, start)
        else:
            yield _drawn(history[:number])

    def undo(self, chosen: gr.UndoData, request: gr.Request, history: History) -> list[Any]:
        """Remove a round, and put its question back into the box."""
        self._replace_running(request, None)
        session = ChatSession(self._pipeline, history=history)
        question = session.undo(_round_of(chosen))
        return _drawn(session.history, returned=question)

    def stop(self, request: gr.Request) -> None:
        """End the answer and keep its text."""
        with self._lock:
            session = self._running.get(_visitor(request))
        if session is not None:
            session.stop()

    def clear(self, request: gr.Request) -> list[Any]:
        """Forget everything."""
        self._replace_running(request, None)
        return _drawn([])

    def open(self, path: str, request: gr.Request, history: History) -> list[Any]:
        """Continue a saved conversation; a bad file leaves the current one."""
        session = ChatSession(self._pipeline, history=history)
        try:
            session.load(Path(path).read_bytes())
        except ChatGLMError as error:
            return _drawn(history, trouble=str(error))
        self._replace_running(request, None)
        note = message("opened", _language(request), rounds=len(session.rounds))
        return _drawn(session.history, note=note)

    def _saver(self, form: str) -> Callable[..., dict[str, str] | None]:
        kind, suffix, render = FORMS[form]

        def save(history: History, system: str, request: gr.Request) -> dict[str, str] | None:
            if not history:
                gr.Info(message("nothing", _language(request)))
                return None
            session = ChatSession(self._pipeline, {"system": system.strip() or None}, history)
            name = f"chatglm-{datetime.now():%Y%m%d-%H%M%S}.{suffix}"
            return {"name": name, "type": kind, "text": render(session.transcript)}

        return save

    def _answer(
        self,
        request: gr.Request,
        history: History,
        settings: Sequence[Any],
        question: str | None,
        start: Callable[[ChatSession], Generator[Delta]],
    ) -> Iterator[list[Any]]:
        """Draw a session again and again while an answer is generated.

        A running answer of the same visitor ends first. Leaving the iteration ends this one.

        Args:
            question: goes back into the box if there is no answer; None if it stays on the page.
        """
        language = _language(request)
        try:
            session = ChatSession(self._pipeline, _options(*settings), history)
        except ChatGLMError as error:
            yield _drawn(history, returned=question, trouble=str(error))
            return
        self._replace_running(request, session)
        trouble, drawn_at = "", time.monotonic()
        try:
            with closing(start(session)) as deltas:
                past, pending = session.history, session.pending
                if pending is not None:  # else it was stopped at once
                    yield _drawn_pending(past, pending, message("waiting", language))
                for _ in deltas:
                    if pending is not None and time.monotonic() - drawn_at >= DRAW_EVERY_S:
                        drawn_at = time.monotonic()
                        yield _drawn_pending(past, pending, self._figures(pending.reply, language))
        except ChatGLMError as error:
            trouble = str(error)
        finally:
            session.stop()
            with self._lock:
                is_current = self._running.get(_visitor(request)) is session
                if is_current:
                    del self._running[_visitor(request)]
        if is_current:  # else another event has drawn the page
            reply = session.last_reply
            assert reply is not None
            returned = None if reply.is_usable else question
            yield _drawn(session.history, note=self._status(reply, language), returned=returned, trouble=trouble)

    def _replace_running(self, request: gr.Request, session: ChatSession | None) -> None:
        """Make `session` the visitor's running one; end the answer of the one before."""
        with self._lock:
            before = self._running.pop(_visitor(request), None)
            if session is not None:
                self._running[_visitor(request)] = session
        if before is not None:
            before.stop()

    def _status(self, reply: Reply, language: Language) -> str:
        """The status line of a finished answer."""
        if not reply.is_usable:
            return message("stopped", language)
        notes = [self._figures(reply, language)]
        if reply.finish_reason in ("cancelled", "length"):
            notes.append(message("stopped" if reply.finish_reason == "cancelled" else "length", language))
        if not reply.text:
            notes.append(message("empty", language))
        return " · ".join(notes)

    def _figures(self, reply: Reply, language: Language) -> str:
        notes = [self._pipeline.name]
        if reply.tokens_per_second is not None:
            notes.append(message("speed", language, rate=reply.tokens_per_second))
        used, limit = reply.prompt_tokens + reply.completion_tokens, self._pipeline.context_limit
        notes.append(message("context", language, used=used, limit=limit))
        if reply.dropped_rounds:
            notes.append(message("dropped", language, rounds=reply.dropped_rounds))
        return " · ".join(notes)


def _as_text(value: object) -> str:
    return "" if value is None else str(value)


def _visitor(request: gr.Request) -> str:
    return str(request.session_hash)


def _language(request: gr.Request) -> Language:
    return language_of(request.headers.get("accept-language", ""))


def _round_of(chosen: gr.RetryData | gr.UndoData | gr.EditData) -> int:
    """The number of the round whose message was chosen."""
    index = chosen.index[0] if isinstance(chosen.index, (list, tuple)) else chosen.index
    return int(index) // 2


def _options(
    max_length: float, top_p: float, temperature: float, top_k: float, seed: str, system: str
) -> dict[str, Any]:
    """Parameters of the pipeline; sliders give whole numbers as floats now and then, and 0 means no wish.

    Raises:
        InvalidRequestError: the seed is no whole number.
    """
    if seed.strip() and not seed.strip().isdecimal():
        raise InvalidRequestError(f"种子 {seed!r} 不是非负整数。", "The seed is a whole number, 0 or more, or empty.")
    return {
        "max_length": int(max_length) or CHAT_DEFAULTS["max_length"],
        "top_p": top_p or CHAT_DEFAULTS["top_p"],
        "temperature": temperature,
        "top_k": int(top_k),
        "seed": int(seed) if seed.strip() else None,
        "system": system.strip() or None,
    }


def _drawn(history: History, *, note: str = "", returned: str | None = None, trouble: str = "") -> list[Any]:
    """What the outputs become: messages, rounds, status line, the box with its buttons.

    Args:
        returned: a question that was not answered, to be put back into the box.
        trouble: why, if that was an error.
    """
    box: dict[str, Any] = {"submit_btn": True, "stop_btn": False}
    if returned is not None:
        box["value"] = returned
    if trouble:
        gr.Warning(trouble)
    return [_shown(history), history, trouble or note, gr.Textbox(**box)]


def _drawn_pending(past: History, pending: Pending, note: str) -> list[Any]:
    """The same while an answer is generated; its text joins the rounds, so that a lost connection keeps it."""
    question, text = pending.round.question, pending.reply.text
    if text:
        history = [*past, (question, text)]
        return [_shown(history), history, note, gr.Textbox(submit_btn=False, stop_btn=True)]
    messages = [*_shown(past), {"role": "user", "content": inert_markdown(question)}]
    return [messages, past, note, gr.Textbox(submit_btn=False, stop_btn=True, value="")]


def _shown(history: History) -> list[dict[str, str]]:
    return [
        {"role": role, "content": inert_markdown(text)}
        for round_ in history
        for role, text in zip(("user", "assistant"), round_, strict=True)
    ]
