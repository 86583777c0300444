"""The Streamlit page. Streamlit runs `show` from top to bottom after every input: the page is drawn from the visitor's
`ChatSession` and the sliders, while a thread of its own generates the pending answer.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING, Any

import streamlit as st
from streamlit.runtime.scriptrunner import RerunException

from chatglm.cli.flags import answer_options, model_options
from chatglm.cli.loading import load_from_flags
from chatglm.errors import ChatGLMError
from chatglm.generation.config import CHAT_DEFAULTS
from chatglm.ui.markdown import TextBlock, plain, streamlit_markdown, text_blocks
from chatglm.ui.notes import notes_on
from chatglm.ui.rounds import Round
from chatglm.ui.session import ChatSession, answer_in_background
from chatglm.ui.streamlit.streamlit_flags import COMMAND, make_parser, parse

if TYPE_CHECKING:
    from streamlit.delta_generator import DeltaGenerator

    from chatglm.pipeline import Pipeline

MAX_ROUNDS = 20  # as upstream's page
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
# Upstream's page has a top_p of its own.
SLIDER_DEFAULTS = {**CHAT_DEFAULTS, "top_p": 0.6}
# Seconds between two checks of the answer. At each of them Streamlit can interrupt the run.
TICK = 0.2
# Seconds between two drawings; browsers take longer to draw longer texts.
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
    """The model, once for all sessions. A failure is not cached."""
    return load_from_flags(argparse.Namespace(**options), is_server=True)


def _show_chat(pipeline: Pipeline, arguments: argparse.Namespace) -> None:
    if "chat" not in st.session_state:
        st.session_state["chat"] = ChatSession(pipeline, max_rounds=MAX_ROUNDS)
    session: ChatSession = st.session_state["chat"]
    if pipeline.is_demo:
        st.info(DEMO)
    session.set_options(_settings(pipeline, answer_options(arguments)))
    buttons = st.bottom.container()
    if (query := st.chat_input(PLACEHOLDER)) and query.strip():
        deltas = session.ask(query.strip())
        answer_in_background(deltas)
    _show_buttons(buttons, session)
    _show_rounds(session)
    if session.pending is not None:
        show_pending(session)
        st.rerun()


def _settings(pipeline: Pipeline, given: dict[str, Any]) -> dict[str, Any]:
    """Draw the sliders; returns the parameters of the next answer."""
    initial = {
        name: SLIDER_DEFAULTS[name] if given[name] is None else given[name] for name in SLIDER_DEFAULTS.keys() & given
    }
    with st.sidebar:
        st.header("设置 / Settings", anchor=False)
        max_length = st.slider(
            "max_length",
            0,
            max(4096, initial["max_length"]),
            initial["max_length"],
            1,
            help="提示与回答合计的最大 token 数，0 为默认值 / tokens of prompt and answer together, 0 = default",
        )
        top_p = st.slider(
            "top_p",
            0.0,
            1.0,
            float(initial["top_p"]),
            0.01,
            help="核采样阈值，越小越保守 / sample from the best tokens with this much probability",
        )
        temperature = st.slider(
            "temperature",
            0.0,
            max(1.0, float(initial["temperature"])),
            float(initial["temperature"]),
            0.01,
            help="采样温度，0 为贪心 / randomness of the sampling, 0 = greedy",
        )
        st.caption(plain(f"模型 model: {pipeline.name}\n上下文 context: {pipeline.context_limit} tokens"))
        st.caption(
            f"保留最近 {MAX_ROUNDS} 轮对话；刷新页面即清空。  \n"
            f"The last {MAX_ROUNDS} rounds are kept; reloading the page forgets them."
        )
    return {**given, "max_length": max_length or None, "top_p": top_p, "temperature": temperature}


def _show_buttons(place: DeltaGenerator, session: ChatSession) -> None:
    """Stop while an answer is pending, else clear."""
    if session.pending is not None:
        place.button(STOP, key="stop", icon=":material/stop_circle:", type="primary", on_click=session.stop)
    elif session.rounds:
        place.button(CLEAR, key="clear", icon=":material/delete:", on_click=session.clear)


def _show_rounds(session: ChatSession) -> None:
    if not session.rounds and session.pending is None:
        st.caption(WELCOME)
    if num := session.num_forgotten:
        st.caption(
            f"（只保留最近 {MAX_ROUNDS} 轮，更早的 {num} 轮已移除 / "
            f"only the last {MAX_ROUNDS} rounds are kept, older ones removed: {num}）"
        )
    for round_ in session.rounds:
        _show_round(round_)


def _show_round(round_: Round) -> None:
    _show_question(round_.question)
    reply = round_.reply
    with st.chat_message("assistant"):
        GrowingText().show(reply.text)
        status = st.empty()
        if reply.error:
            status.error(plain(reply.error))
        elif notes := notes_on(reply, "max_length"):
            status.caption(plain("\n".join(notes)))


def _show_question(question: str) -> None:
    with st.chat_message("user"):
        GrowingText().show(question)


def show_pending(session: ChatSession) -> None:
    """Show the pending answer as it comes, until it has ended.

    Streamlit ends a run by an exception from any of its functions. RerunException starts another run, which shows the
    answer again; StopException means that the person has left or pressed Streamlit's own stop: the answer ends.
    """
    pending = session.pending
    if pending is None:
        return
    _show_question(pending.round.question)
    with st.chat_message("assistant"):
        shown, status = GrowingText(), st.empty()
    text: str | None = ""
    try:
        while text is not None:
            status.caption(REPLYING if text else f"{THINKING} {time.monotonic() - pending.started:.0f} s")
            shown.show(text)
            time.sleep(PAUSE + PAUSE_PER_CHARACTER * len(text))
            text = session.wait(len(text), TICK)
    except RerunException:
        raise
    except BaseException:
        session.stop()
        raise


class GrowingText:
    """A text on the page that may grow; blocks that have not changed are not drawn again."""

    def __init__(self) -> None:
        self._place = st.container()
        self._slots: list[DeltaGenerator] = []
        self._shown: list[TextBlock] = []

    def show(self, text: str) -> None:
        blocks = text_blocks(text)
        for number, block in enumerate(blocks):
            if number == len(self._slots):
                self._slots.append(self._place.empty())
            if self._shown[number : number + 1] != [block]:
                _draw(block, self._slots[number])
        for slot in self._slots[len(blocks) :]:
            slot.empty()
        self._shown = blocks


def _draw(block: TextBlock, slot: DeltaGenerator) -> None:
    if block.kind == "code":
        slot.code(block.text, language=block.language or None, wrap_lines=True)
    elif block.kind == "formula":
        slot.latex(block.text)
    else:
        slot.markdown(streamlit_markdown(block.text))
