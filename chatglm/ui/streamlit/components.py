"""Elements that Streamlit lacks: HTML with formulas, a button that copies the very text, and the memory of a tab."""

from __future__ import annotations

import re
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import streamlit as st

from chatglm.ui.markdown import STYLE, render, render_plain
from chatglm.ui.streamlit.page_texts import Texts

if TYPE_CHECKING:
    from streamlit.delta_generator import DeltaGenerator

_HERE = Path(__file__).parent
_PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")
_LINE_END = re.compile(r"(?<!\n)\n(?!\n)")


def _component(name: str) -> Any:
    script = "".join((_HERE / f"{part}.js").read_text(encoding="utf-8") for part in ("clipboard", name))
    return st.components.v2.component(f"chatglm_{name}", html="<section></section>", js=script, isolate_styles=False)


_ANSWER, _COPY, _MEMORY, _OPEN = map(_component, ("answer", "copy", "memory", "open"))
_CSS = (_HERE / "page.css").read_text(encoding="utf-8")


def style() -> None:
    """Give the page the look of its own elements."""
    st.html(f"<style>{STYLE}{_CSS}</style>")


def answer(text: str, key: str, texts: Texts, *, is_new: bool = False) -> None:
    """An answer; the page goes to a new one. (`st.html` would take formulas away.)"""
    labels = {"copy": texts("copy"), "copied": texts("copied")}
    _ANSWER(data={"html": render(text), "is_new": is_new, **labels}, key=key)


def feed(text: str, place: DeltaGenerator) -> None:
    """The text so far of the answer in the same message; blocks that have been drawn stay."""
    place.html(f'<div class="feed">{escape(render(text))}</div>')


def question(text: str) -> None:
    """A question as it was typed."""
    st.html(render_plain(text))


def copy_button(text: str, key: str, texts: Texts) -> None:
    """Copies the text itself."""
    _COPY(data={"text": text, "copy": texts("copy"), "copied": texts("copied")}, key=key, width="content")


def open_button(key: str, texts: Texts, on_chosen: Callable[[], None]) -> None:
    """Lets a text file be chosen, which then is `st.session_state[key].chosen`. (Streamlit's own is in English.)"""
    _OPEN(data={"label": texts("open")}, key=key, width="content", on_chosen_change=on_chosen)


def memory(content: str | None, texts: Texts, on_found: Callable[[], None]) -> None:
    """Keep `content` in the browser's tab; None asks for what is kept there, and `on_found` is called.

    What was found then is `st.session_state["memory"].found`, "null" if there was nothing.
    """
    _MEMORY(data={"content": content, "full": texts("storage_full")}, key="memory", on_found_change=on_found)


def keep(content: str, place: DeltaGenerator) -> None:
    """Keep this instead, in the same run."""
    place.html(f'<div class="kept">{escape(content)}</div>')


def escaped(text: str) -> str:
    """Streamlit's Markdown for a text without any markup."""
    return _LINE_END.sub("  \n", _PUNCTUATION.sub(r"\\\1", text))
