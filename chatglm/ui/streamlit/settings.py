"""The side bar: the model, the parameters of the answers, and conversations as files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import streamlit as st

from chatglm.errors import ChatGLMError
from chatglm.generation.config import CHAT_DEFAULTS
from chatglm.ui.error_texts import error_text
from chatglm.ui.rounds import Round
from chatglm.ui.session import ChatSession
from chatglm.ui.streamlit.components import escaped, open_button
from chatglm.ui.streamlit.page_texts import Texts, language_of
from chatglm.ui.transcript import Transcript, read_transcript

if TYPE_CHECKING:
    from streamlit.delta_generator import DeltaGenerator

    from chatglm.pipeline import Pipeline

# Upstream's page has a top_p of its own.
DEFAULTS: dict[str, Any] = {**CHAT_DEFAULTS, "top_p": 0.6, "seed": None, "system": ""}
KINDS: dict[str, Callable[[Any], Any]] = {
    "system": str, "max_length": int, "temperature": float, "top_p": float, "top_k": int, "seed": int,
}  # fmt: skip
MAX_ROUNDS = 20  # as upstream's page
LEAST_TOP_P, MAX_TOP_K = 0.01, 100
# What can be saved: media type, suffix, content.
FORMS: dict[str, tuple[str, str, Callable[[Transcript], str]]] = {
    "html": ("text/html", "html", Transcript.html),
    "markdown": ("text/markdown", "md", Transcript.markdown),
    "json": ("application/json", "json", Transcript.json),
}


def show_side_bar(pipeline: Pipeline, session: ChatSession, texts: Texts) -> DeltaGenerator:
    """Draw it, and give the session the parameters that it says; returns a place beside what is said of keeping."""
    with st.sidebar:
        st.header(texts("title"), anchor=False)
        lines = [texts("model", name=pipeline.name), texts("precision", precision=pipeline.precision)]
        st.caption(escaped("\n".join([*lines, texts("limit", limit=pipeline.context_limit)])))
        place = _show_files(session, texts)
        st.subheader(texts("settings"), anchor=False)
        _show_settings(pipeline.context_limit, {**session.options, "system": session.system}, texts)
    apply_settings(session)
    return place


def _show_settings(context_limit: int, given: Mapping[str, Any], texts: Texts) -> None:
    state = st.session_state
    if "max_length" not in state:
        use_settings({name: DEFAULTS[name] if given.get(name) is None else given[name] for name in KINDS})
    state.max_length = min(max(state.max_length, 1), context_limit)

    def shown(name: str) -> dict[str, Any]:
        return {"label": texts(name), "help": texts(f"{name}_help"), "key": name}

    st.text_area(**shown("system"), height=80)
    st.slider(**shown("max_length"), min_value=1, max_value=context_limit, step=1)
    st.slider(**shown("temperature"), min_value=0.0, max_value=max(1.0, state.temperature), step=0.01)
    st.slider(**shown("top_p"), min_value=0.0, max_value=1.0, step=0.01)
    st.slider(**shown("top_k"), min_value=0, max_value=max(MAX_TOP_K, state.top_k), step=1)
    st.number_input(texts("seed"), 0, None, None, 1, key="seed", placeholder=texts("random"), help=texts("seed_help"))


def apply_settings(session: ChatSession) -> None:
    """Give the session what the widgets say. A callback runs before they are drawn, so it has to do this itself."""
    state = st.session_state
    options = {name: state[name] for name in KINDS}
    options |= {"system": state.system.strip() or None, "top_p": max(state.top_p, LEAST_TOP_P)}
    session.set_options({**session.options, **options})


def use_settings(settings: Mapping[str, Any]) -> None:
    """Put settings, say of a file, into the widgets. Only before they are drawn."""
    for name, kind in KINDS.items():
        if name in settings:
            st.session_state[name] = None if settings[name] is None else kind(settings[name])


def open_conversation(session: ChatSession, data: bytes) -> None:
    """Continue a saved conversation with its settings.

    Raises:
        ChatGLMError: it is none; everything stays as it was.
    """
    transcript = read_transcript(data)
    _open_transcript(session, transcript)


def _open_transcript(session: ChatSession, transcript: Transcript) -> None:
    session.open(transcript)
    use_settings({**transcript.settings, "system": session.system or ""})


def _show_files(session: ChatSession, texts: Texts) -> DeltaGenerator:
    state = st.session_state
    with st.container(horizontal=True, gap="small"):
        if session.rounds or session.pending is not None:
            st.button(texts("clear"), key="clear", icon=":material/delete:", on_click=_clear, args=(session,))
        if (undoable := _undoable(session)) is not None:
            name = undoable.name
            st.button(texts(name), key=name, icon=":material/undo:", on_click=_undo, args=(session, undoable))
        with st.popover(texts("save"), icon=":material/download:", disabled=not session.rounds):
            _show_downloads(session, texts)
        open_button("open", texts, partial(_open, session))
    if trouble := state.pop("trouble", None):
        st.error(escaped(trouble))
    st.caption(texts("kept", limit=MAX_ROUNDS))
    return st.container()


@dataclass(frozen=True)
class Undoable:
    """What can be had again: `before`, as long as the conversation is `after`, or empty."""

    name: Literal["unclear", "unopen"]
    before: Transcript
    after: list[Round]


def _undoable(session: ChatSession) -> Undoable | None:
    undoable: Undoable | None = st.session_state.get("undoable")
    if undoable is None or session.pending is not None:
        return None
    return undoable if not session.rounds or session.rounds is undoable.after else None


def _undo(session: ChatSession, undoable: Undoable) -> None:
    del st.session_state.undoable
    if undoable.name == "unclear":  # settings may have changed since
        session.open(replace(undoable.before, system=None, settings={}))
        return
    session.set_options({})
    _open_transcript(session, replace(undoable.before, settings={"seed": None, **undoable.before.settings}))


def _clear(session: ChatSession) -> None:
    session.stop()
    before = session.transcript
    session.clear()
    st.session_state.undoable = Undoable("unclear", before, session.rounds)


def _open(session: ChatSession) -> None:
    try:
        transcript = read_transcript(st.session_state["open"].chosen.encode(errors="replace"))
        session.stop()
        before = session.transcript
        _open_transcript(session, transcript)
        if before.rounds:
            st.session_state.undoable = Undoable("unopen", before, session.rounds)
    except ChatGLMError as error:
        st.session_state.trouble = error_text(error, language_of(st.context.locale))


def _show_downloads(session: ChatSession, texts: Texts) -> None:
    for name, (media_type, suffix, write) in FORMS.items():
        file = f"chatglm.{suffix}"
        st.download_button(texts(name), _file(session, write), file, media_type, key=f"save-{name}", on_click="ignore")


def _file(session: ChatSession, write: Callable[[Transcript], str]) -> Callable[[], bytes]:
    """Writes the file when it is wanted."""
    return lambda: write(session.transcript).encode(errors="replace")
