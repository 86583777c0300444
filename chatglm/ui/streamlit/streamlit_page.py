"""The Streamlit page. Streamlit runs `show` from top to bottom after every input: the page is drawn from the visitor's
`ChatSession` and the settings, while a thread of its own generates the pending answer. All input is taken by callbacks:
the next input ends a run, and what a call in that run would have returned is lost.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import streamlit as st

from chatglm.cli.loading import LOADING, load_from_flags
from chatglm.cli.parsing import answer_options, model_options
from chatglm.errors import ChatGLMError
from chatglm.ui.error_texts import error_text
from chatglm.ui.session import ChatSession
from chatglm.ui.streamlit.components import escaped, memory, style
from chatglm.ui.streamlit.conversation import kept, show_conversation, start
from chatglm.ui.streamlit.page_texts import Texts, language_of, starters_for, texts_for
from chatglm.ui.streamlit.settings import MAX_ROUNDS, open_conversation, show_side_bar
from chatglm.ui.streamlit.streamlit_flags import COMMAND, make_parser, parse

if TYPE_CHECKING:
    from chatglm.pipeline import Pipeline


def show() -> None:
    """Draw the page once."""
    texts = texts_for(st.context.locale)
    st.set_page_config(page_title=texts("title"), page_icon=":robot:")
    if {"-h", "--help"} & set(sys.argv[1:]):
        st.code(make_parser().format_help(), language=None)
        st.stop()
    try:
        arguments = parse()
        pipeline = load(model_options(arguments))
    except ChatGLMError as error:
        st.error(escaped(error_text(error, language_of(st.context.locale))))
        st.stop()
    _show_chat(pipeline, answer_options(arguments), texts)


@st.cache_resource(show_spinner=LOADING)
def load(options: dict[str, Any]) -> Pipeline:
    """The model, once for all sessions. A failure is not cached."""
    return load_from_flags(argparse.Namespace(**options), is_server=True)


def _show_chat(pipeline: Pipeline, given: dict[str, Any], texts: Texts) -> None:
    style()
    language = language_of(st.context.locale)
    if "chat" not in st.session_state:
        st.session_state.chat = ChatSession(
            pipeline, given, max_rounds=MAX_ROUNDS, error_text=lambda error: error_text(error, language)
        )
    session: ChatSession = st.session_state.chat
    buttons = st.bottom.container()
    typed = st.chat_input(texts("placeholder"), key="question", on_submit=_take_question, args=(session,))
    if typed and not st.session_state.pop("is_taken", False):
        _take_question(session)  # the first input of a session has no callback yet: the server has been restarted
    place = show_side_bar(pipeline, session, texts)
    if session.pending is not None:
        buttons.button(
            texts("stop"),
            key="stop",
            icon=":material/stop_circle:",
            type="primary",
            on_click=session.stop,
            shortcut="Esc",
        )
    elif not session.rounds:
        _show_welcome(pipeline, session, texts)
    with place:
        memory(kept(session).json() if "has_memory" in st.session_state else None, texts, _restore)
    show_conversation(session, pipeline.context_limit, texts)


def _show_welcome(pipeline: Pipeline, session: ChatSession, texts: Texts) -> None:
    if pipeline.is_demo:
        st.info(texts("demo", command=COMMAND))
    st.write(texts("welcome"))
    with st.container(horizontal=True):
        for number, starter in enumerate(starters_for(st.context.locale)):
            st.button(starter, key=f"starter-{number}", on_click=_ask, args=(session, starter))


def _take_question(session: ChatSession) -> None:
    st.session_state.is_taken = True
    if question := st.session_state.question.rstrip():
        _ask(session, question)


def _ask(session: ChatSession, question: str) -> None:
    """Answer a question, once it is known what the tab has kept: after a restart of the server it may come first."""
    if "has_memory" in st.session_state:
        start(session, lambda: session.ask(question))
    else:
        st.session_state.asked = question


def _restore() -> None:
    """Continue the conversation that the tab kept, if any."""
    state = st.session_state
    if "has_memory" in state:
        return
    state.has_memory = True
    session: ChatSession = state.chat
    with suppress(ChatGLMError):  # there is none, or it is of another release
        open_conversation(session, state.memory.found.encode(errors="replace"))
    if "asked" in state:
        _ask(session, state.pop("asked"))
