"""The Gradio page: what lies where, and which handler an event meets.

Knows: Gradio. Does not know how answers are made (web_chat.py), the words (web_words.py) or where the page is served
(web.py). The rounds of a visitor live in the state of his own page; what is shown of them is made safe first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from chatglm.errors import ChatGLMError, InvalidRequestError
from chatglm.generation.config import CHAT_DEFAULTS
from chatglm.messages import History
from chatglm.ui.gradio.chat import View, WebChat
from chatglm.ui.gradio.markdown import shown_text, shown_text_undone
from chatglm.ui.gradio.texts import CHINESE, ENGLISH, EXAMPLES, Language, language_of, sentence
from chatglm.ui.transcript import read_json, render_html, render_json, render_markdown

if TYPE_CHECKING:
    from chatglm.pipeline import Pipeline

TITLE = "ChatGLM-6B"
WORDS: Any = gr.I18n(zh=CHINESE, en=ENGLISH)  # its promises of a text are no str to a type checker
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
# The text goes from the state to a file of the visitor's without ever lying on the server's disk.
SAVE_FILE = """(file) => {
    if (!file || !file.text) return
    const link = document.createElement('a')
    link.href = URL.createObjectURL(new Blob([file.text], {type: file.type}))
    link.download = file.name
    link.click()
    URL.revokeObjectURL(link.href)
}"""
# What a visitor can save, with the type the browser is told.
FORMS: dict[str, tuple[str, Callable[[History, str, str | None], str]]] = {
    "html": ("text/html", render_html),
    "markdown": ("text/markdown", render_markdown),
    "json": ("application/json", render_json),
}


SUFFIXES = {"html": "html", "markdown": "md", "json": "json"}
SEED = 4  # its place among the settings


class Page:
    """The page of one pipeline.

    Args:
        pipeline: a loaded model.
        defaults: where the sliders stand at first, by parameter; None and what is missing: as the model says.
        max_running: visitors answered at once.
    """

    def __init__(self, pipeline: Pipeline, defaults: Mapping[str, Any], max_running: int) -> None:
        self._pipeline = pipeline
        self._chat = WebChat(pipeline)
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
            # A number field has no empty state: it would say 0, which is a seed like any other.
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
        try:
            options = _options(*settings)
        except ChatGLMError as error:
            yield _drawn(View(history, returned=question, trouble=str(error)))
            return
        yield from map(_drawn, self._chat.ask(_visitor(request), question, history, options, _language(request)))

    def ask_example(
        self, chosen: gr.SelectData, request: gr.Request, history: History, *settings: Any
    ) -> Iterator[list[Any]]:
        """Answer one of the starters."""
        yield from self.ask(chosen.value["text"], request, history, *settings)

    def retry(self, chosen: gr.RetryData, request: gr.Request, history: History, *settings: Any) -> Iterator[list[Any]]:
        """Answer a question again, sampled anew; later rounds go."""
        number = _round_of(chosen)
        settings = (*settings[:SEED], "", *settings[SEED + 1 :])  # or the answer would be the same
        yield from self.ask(history[number][0], request, history[:number], *settings)

    def edit(self, changed: gr.EditData, request: gr.Request, history: History, *settings: Any) -> Iterator[list[Any]]:
        """Answer a changed question; later rounds go."""
        question = shown_text_undone(str(changed.value))
        yield from self.ask(question, request, history[: _round_of(changed)], *settings)

    def undo(self, chosen: gr.UndoData, request: gr.Request, history: History) -> list[Any]:
        """Take a round back, and put its question where it was typed."""
        self._chat.forget(_visitor(request))
        number = _round_of(chosen)
        return _drawn(View(history[:number], returned=history[number][0]))

    def stop(self, request: gr.Request) -> None:
        """End the answer within a token."""
        self._chat.stop(_visitor(request))

    def clear(self, request: gr.Request) -> list[Any]:
        """Forget everything."""
        self._chat.forget(_visitor(request))
        return _drawn(View([]))

    def open(self, path: str, request: gr.Request, history: History) -> list[Any]:
        """Go on with a saved conversation; a bad file leaves the one that is there."""
        try:
            opened = read_json(Path(path).read_bytes())
        except ChatGLMError as error:
            return _drawn(View(history, trouble=str(error)))
        self._chat.forget(_visitor(request))
        return _drawn(View(opened, note=sentence("opened", _language(request), rounds=len(opened))))

    def _saver(self, form: str) -> Callable[..., dict[str, str] | None]:
        kind, render = FORMS[form]

        def save(history: History, system: str, request: gr.Request) -> dict[str, str] | None:
            if not history:
                gr.Info(sentence("nothing", _language(request)))
                return None
            name = f"chatglm-{datetime.now():%Y%m%d-%H%M%S}.{SUFFIXES[form]}"
            return {"name": name, "type": kind, "text": render(history, self._pipeline.name, system.strip() or None)}

        return save


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


def _drawn(view: View) -> list[Any]:
    """What the outputs become: messages, rounds, status line, the box with its buttons."""
    messages = [
        {"role": role, "content": shown_text(text)}
        for round_ in view.history
        for role, text in zip(("user", "assistant"), round_, strict=True)
    ]
    if view.question is not None:
        messages.append({"role": "user", "content": shown_text(view.question)})
    box: dict[str, Any] = {"submit_btn": not view.is_running, "stop_btn": view.is_running}
    if view.question is not None:
        box["value"] = ""
    if view.returned is not None:
        box["value"] = view.returned
    if view.trouble:
        gr.Warning(view.trouble)
    return [messages, view.history, view.trouble or view.note, gr.Textbox(**box)]
