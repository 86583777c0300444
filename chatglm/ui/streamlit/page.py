"""The Streamlit page: what a person sees and may press.

Knows: Streamlit. Does not know what is kept of an answer (`streamlit_chat.py`) or what its text may not do
(`streamlit_markdown.py`). Streamlit runs all of it anew, top to bottom, for everything a person does: the page is drawn
from the session's `Chat` and the sliders, and the answer under way goes on meanwhile.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from typing import TYPE_CHECKING, Any

import streamlit as st
from streamlit.runtime.scriptrunner import RerunException

from chatglm.cli.flags import answer_options, model_options
from chatglm.errors import ChatGLMError
from chatglm.generation.config import CHAT_DEFAULTS
from chatglm.progress import ProgressBar
from chatglm.ui.streamlit.chat import MAX_ROUNDS, Answering, Chat, Round
from chatglm.ui.streamlit.launch import COMMAND, make_parser, parse
from chatglm.ui.streamlit.markdown import Piece, pieces, plain, prose

if TYPE_CHECKING:
    from streamlit.delta_generator import DeltaGenerator

    from chatglm.pipeline import Pipeline

TITLE = "ChatGLM-6b 演示"
PLACEHOLDER = "请在这儿输入您的命令 / Type a message"
LOADING = "正在加载模型，请稍候 / loading the model ..."
THINKING = "AI正在思考，请稍等…… / thinking"
REPLYING = "AI正在回复…… / replying"
STOP = "停止 / Stop"
CLEAR = "清空对话 / Clear"
WELCOME = "你好！在下面输入问题即可开始对话。/ Hello! Type a question below to begin."
DEMO = f"""\
这是随附的迷你演示模型（约 800 万参数）：只会一点闲聊、算术和常识，经常答错，不代表 ChatGLM-6B 的水平。

The bundled toy model (about 8M parameters): a little small talk, sums and facts, often wrong; it says nothing about \
ChatGLM-6B.

真正的模型 for the real one: `{COMMAND} -- --model FOLDER`"""
# Upstream's page begins with another top_p than everything else of upstream's.
SLIDER_DEFAULTS = {**CHAT_DEFAULTS, "top_p": 0.6}
# Seconds between two looks at the answer. Each of them is also a moment at which Streamlit can take the thread back.
TICK = 0.2
# Seconds between two drawings: more often nobody sees, and browsers take longer to draw longer texts.
PAUSE = 0.05
PAUSE_PER_CHARACTER = 5e-5


def show() -> None:
    """Draw the page once."""
    st.set_page_config(page_title=TITLE, page_icon=":robot:")
    st.title(TITLE, anchor=False)
    if {"-h", "--help"} & set(sys.argv[1:]):
        st.code(make_parser().format_help(), language=None)
        st.stop()
    try:
        arguments = parse()
        pipeline = load(model_options(arguments))
    except ChatGLMError as error:
        st.error(plain(str(error)))
        st.stop()
    _show_chat(pipeline, arguments)


@st.cache_resource(show_spinner=LOADING)
def load(options: dict[str, Any]) -> Pipeline:
    """The model, once for all sessions; a failure is told to each of them, and the next one tries again."""
    # Streamlit's threads need the processors too; see the servers' start. Read when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from chatglm.pipeline import load_pipeline  # torch and transformers: seconds, so not before the flags are right

    def report(sentence: str) -> None:
        print(sentence, file=sys.stderr, flush=True)

    with ProgressBar(sys.stderr) as bar:
        return load_pipeline(**options, progress=bar, report=report)


def _show_chat(pipeline: Pipeline, arguments: argparse.Namespace) -> None:
    chat: Chat = st.session_state.setdefault("chat", Chat())
    chat.settle()
    if pipeline.is_demo:
        st.info(DEMO)
    options = _settings(pipeline, answer_options(arguments))
    buttons = st.bottom.container()
    if (query := st.chat_input(PLACEHOLDER)) and query.strip():
        chat.ask(pipeline, query.strip(), options)
    _show_buttons(buttons, chat)
    _show_rounds(chat)
    if chat.answering is not None:
        show_growing(chat.answering)
        chat.settle()
        st.rerun()


def _settings(pipeline: Pipeline, given: dict[str, Any]) -> dict[str, Any]:
    """The sliders; returns the parameters of the next request."""
    begin = {
        name: SLIDER_DEFAULTS[name] if given[name] is None else given[name] for name in SLIDER_DEFAULTS.keys() & given
    }
    with st.sidebar:
        st.header("设置 / Settings", anchor=False)
        max_length = st.slider(
            "max_length",
            0,
            max(4096, begin["max_length"]),
            begin["max_length"],
            1,
            help="提示与回答合计的最大 token 数，0 为默认值 / tokens of prompt and answer together, 0 = default",
        )
        top_p = st.slider(
            "top_p",
            0.0,
            1.0,
            float(begin["top_p"]),
            0.01,
            help="核采样阈值，越小越保守 / sample from the best tokens with this much probability",
        )
        temperature = st.slider(
            "temperature",
            0.0,
            max(1.0, float(begin["temperature"])),
            float(begin["temperature"]),
            0.01,
            help="采样温度，0 为贪心 / randomness of the sampling, 0 = greedy",
        )
        st.caption(plain(f"模型 model: {pipeline.name}\n上下文 context: {pipeline.context_limit} tokens"))
        st.caption(
            f"保留最近 {MAX_ROUNDS} 轮对话；刷新页面即清空。  \n"
            f"The last {MAX_ROUNDS} rounds are kept; reloading the page forgets them."
        )
    return {**given, "max_length": max_length or None, "top_p": top_p, "temperature": temperature}


def _show_buttons(place: DeltaGenerator, chat: Chat) -> None:
    """Stop while there is something to stop, else clear."""
    if chat.answering is not None:
        place.button(STOP, key="stop", icon=":material/stop_circle:", type="primary", on_click=chat.stop)
    elif chat.rounds:
        place.button(CLEAR, key="clear", icon=":material/delete:", on_click=chat.clear)


def _show_rounds(chat: Chat) -> None:
    if not chat.rounds and chat.answering is None:
        st.caption(WELCOME)
    if num := chat.num_forgotten:
        st.caption(
            f"（只保留最近 {MAX_ROUNDS} 轮，更早的 {num} 轮已移除 / "
            f"only the last {MAX_ROUNDS} rounds are kept, older ones removed: {num}）"
        )
    for round_ in chat.rounds:
        _show_round(round_)


def _show_round(round_: Round) -> None:
    _show_query(round_.query)
    with st.chat_message("assistant"):
        Writing().show(round_.answer)
        status = st.empty()
        if round_.error:
            status.error(plain(round_.error))
        elif round_.notes:
            status.caption(plain("\n".join(round_.notes)))


def _show_query(query: str) -> None:
    with st.chat_message("user"):
        Writing().show(query)


def show_growing(answering: Answering) -> None:
    """Show the answer as it comes, until it is done.

    Streamlit ends this thread by an exception out of any of its functions: for a new drawing, in which the answer is
    found again, or because the person has left or pressed Streamlit's own stop, which ends the answer.
    """
    _show_query(answering.query)
    with st.chat_message("assistant"):
        writing, status = Writing(), st.empty()
    text, is_done, is_drawn_anew, start = "", False, False, time.monotonic()
    try:
        while not is_done:
            status.caption(REPLYING if text else f"{THINKING} {time.monotonic() - start:.0f} s")
            text, is_done = answering.wait(len(text), TICK)
            writing.show(text)
            time.sleep(PAUSE + PAUSE_PER_CHARACTER * len(text))
    except RerunException:
        is_drawn_anew = True
        raise
    finally:
        if not is_drawn_anew:
            answering.cancel()


class Writing:
    """A text on the page that may grow: pieces that stay as they are are not drawn again."""

    def __init__(self) -> None:
        self._place = st.container()
        self._slots: list[DeltaGenerator] = []
        self._shown: list[Piece] = []

    def show(self, text: str) -> None:
        """Show `text` in the place of what is shown."""
        wanted = pieces(text)
        for number, piece in enumerate(wanted):
            if number == len(self._slots):
                self._slots.append(self._place.empty())
            if self._shown[number : number + 1] != [piece]:
                _draw(piece, self._slots[number])
        for slot in self._slots[len(wanted) :]:
            slot.empty()
        self._shown = wanted


def _draw(piece: Piece, slot: DeltaGenerator) -> None:
    if piece.kind == "code":
        slot.code(piece.text, language=piece.language or None, wrap_lines=True)
    elif piece.kind == "formula":
        slot.latex(piece.text)
    else:
        slot.markdown(prose(piece.text))
