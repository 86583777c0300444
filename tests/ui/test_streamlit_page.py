"""The Streamlit page without a browser, and the script without Streamlit."""

from __future__ import annotations

import json
import re
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("streamlit", reason="the page needs Streamlit: pip install streamlit")

import streamlit as st
from streamlit import config, context
from streamlit.runtime.scriptrunner import RerunData, RerunException, StopException
from streamlit.testing.v1 import AppTest

from chatglm.cli.flags import ANSWER_FLAGS, MODEL_FLAGS
from chatglm.generation.deltas import Delta
from chatglm.pipeline import Pipeline
from chatglm.ui.rounds import Reply, Round
from chatglm.ui.session import ChatSession
from chatglm.ui.streamlit import streamlit_page
from chatglm.ui.streamlit.conversation import kept, show_conversation
from chatglm.ui.streamlit.page_texts import TEXTS, texts_for
from chatglm.ui.streamlit.settings import FORMS, MAX_ROUNDS
from chatglm.ui.transcript import Transcript
from tests.ui.streamlit_script import TalkingPipeline

pytestmark = pytest.mark.xdist_group("streamlit")

ROOT = Path(__file__).parents[2]
SCRIPT = str(ROOT / "web_demo2.py")
PATIENCE_S = 60
CHINESE = texts_for("zh-CN")


class Interrupted(ChatSession):
    """A session whose pending answer is being shown when Streamlit takes the thread back."""

    def __init__(self, interruption: BaseException) -> None:
        super().__init__(TalkingPipeline())  # type: ignore[arg-type]
        self._interruption = interruption
        self.deltas = self.ask("你好")

    def wait(self, num_seen: int, timeout: float) -> str | None:
        raise self._interruption


@pytest.mark.parametrize(
    ("interruption", "is_pending"), [(RerunException(RerunData()), True), (StopException(), False)]
)
def test_an_answer_ends_when_its_reader_leaves_but_not_on_a_rerun(
    interruption: BaseException, is_pending: bool
) -> None:
    session = Interrupted(interruption)
    with pytest.raises(type(interruption)):
        show_conversation(session, 2048, CHINESE)
    assert (session.pending is not None) == is_pending


def test_what_a_reload_leaves_of_a_pending_answer() -> None:
    """All that stopping it would, and what it was to replace as long as it has no text."""
    session = ChatSession(TalkingPipeline(), history=[("一", "1"), ("endless", "2")])  # type: ignore[arg-type]

    def reloaded(num_deltas: int, deltas: Iterator[Delta]) -> list[tuple[str, list[str]]]:
        for _ in range(num_deltas):
            next(deltas)
        other = ChatSession(TalkingPipeline())  # type: ignore[arg-type]
        other.load(kept(session).json().encode())
        session.stop()
        return [(round_.question, [version.text for version in round_.versions]) for round_ in other.rounds]

    line, before = "第 1 行\n\n", [("一", ["1"]), ("endless", ["2"])]
    assert reloaded(0, session.retry()) == before
    assert reloaded(1, session.retry()) == [before[0], ("endless", ["2", line])]
    assert reloaded(1, session.continue_answer()) == [before[0], ("endless", ["2", line + line])]
    num_rounds = len(session.rounds)
    assert len(reloaded(0, session.ask("endless"))) == num_rounds + 1
    assert reloaded(1, session.ask("endless"))[-1] == ("endless", [line])
    everything = [round_.question for round_ in session.rounds]
    assert [question for question, _ in reloaded(0, session.edit(0, "endless"))] == everything
    session.open(Transcript("", None, session.rounds))
    assert reloaded(1, session.edit(0, "endless")) == [("endless", [line])]


@pytest.fixture(autouse=True)
def _clean_environment(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHATGLM_CACHE", environment["CHATGLM_CACHE"])
    for flag in (*MODEL_FLAGS, *ANSWER_FLAGS):
        monkeypatch.delenv(flag.variable, raising=False)


@pytest.fixture
def open_page(monkeypatch: pytest.MonkeyPatch) -> Callable[..., AppTest]:
    def start(*flags: str) -> AppTest:
        monkeypatch.setattr(sys, "argv", [SCRIPT, *flags])
        page = AppTest.from_file(SCRIPT, default_timeout=PATIENCE_S)
        page.session_state["has_memory"] = True  # as after the answer of the browser
        page.run()
        assert not page.exception
        return page

    return start


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], dict[str, Any]]]:
    """What the page asks of the pipeline: texts of the messages, and parameters."""
    asked: list[tuple[list[str], dict[str, Any]]] = []
    submit = Pipeline.submit

    def record(self: Pipeline, messages: Any, *, cancel: Any, **parameters: Any) -> Any:
        asked.append(([message.content for message in messages], parameters))
        return submit(self, messages, cancel=cancel, **parameters)

    monkeypatch.setattr(Pipeline, "submit", record)
    return asked


@pytest.fixture
def talking(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page has a model that does what the question says."""
    pipeline = TalkingPipeline()
    monkeypatch.setattr(streamlit_page, "load", lambda _: pipeline)


def ask(page: AppTest, text: str) -> AppTest:
    page.chat_input[0].set_value(text).run()
    assert not page.exception
    return page


def press(page: AppTest, key: str) -> AppTest:
    page.button(key).click().run()
    assert not page.exception
    return page


def history(page: AppTest) -> list[tuple[str, str]]:
    return list(page.session_state["chat"].history)


def test_a_chat_with_the_demo(open_page: Callable[..., AppTest], requests: list[Any]) -> None:
    page = open_page("--seed", "7")
    assert page.sidebar.header[0].value == CHINESE("title")
    assert "--model" in page.info[0].value
    assert page.chat_input[0].placeholder == CHINESE("placeholder")
    sliders = {slider.key: (slider.min, slider.max, slider.value) for slider in page.sidebar.slider}
    assert sliders == {
        "max_length": (1, 1024, 1024), "temperature": (0, 1, 0.95), "top_p": (0, 1, 0.6), "top_k": (0, 100, 50),
    }  # fmt: skip
    info = page.sidebar.caption[0].value.replace("\\", "")
    for part in ("demo", "fp32 on cpu", "1024"):
        assert part in info
    page.slider("temperature").set_value(0.0)
    page.text_area("system").set_value(" 简短 ")
    press(page, "starter-0")
    [(question, answer)] = history(page)
    assert answer
    page.slider("max_length").set_value(1000)
    page.slider("top_p").set_value(0.25)
    page.text_area("system").set_value("")
    page.number_input("seed").set_value(None)
    ask(page, "你是谁\n  ？\n")
    same = {"top_k": 50, "temperature": 0.0}
    assert requests == [
        (["简短", question], {**same, "max_length": 1024, "top_p": 0.6, "seed": 7}),
        ([question, answer, "你是谁\n  ？"], {**same, "max_length": 1000, "top_p": 0.25, "seed": None}),
    ]
    figures = [caption.value.replace("\\", "") for caption in page.main.caption]
    assert all(re.search(r"上下文 \d+ / 1024", text) for text in figures)
    assert all("token/秒" in text for text in figures)


def test_what_can_be_done_to_rounds(open_page: Callable[..., AppTest], talking: None) -> None:
    page = ask(open_page(), "一")
    session = page.session_state["chat"]
    session.rounds = [*session.rounds, Round("二三四", (Reply("二", "length"),))]
    assert CHINESE("length") in page.run().main.caption[-1].value
    press(page, "continue-1")
    assert history(page) == [("一", "一"), ("二三四", "二三四")]
    press(page, "icons-undo-1")
    press(page, "icons-retry-0")
    assert [len(session.rounds[0].versions), session.rounds[0].selected] == [2, 1]
    assert page.button("icons-later-0").disabled
    press(page, "icons-earlier-0")
    assert session.rounds[0].selected == 0
    assert page.button("icons-earlier-0").disabled
    press(page, "icons-edit-0")
    page.text_area("edited-0").set_value("二")
    next(button for button in page.main.button if button.label == CHINESE("send")).click().run()
    assert history(page) == [("二", "二")]
    assert [area.key for area in page.text_area] == ["system"]
    ask(page, "broken")
    [error] = page.error
    assert "NaN" in error.value
    assert history(page) == [("二", "二")]
    press(page, "clear")
    assert session.rounds == []
    press(page, "unclear")
    assert history(page) == [("二", "二")]
    assert page.button("icons-retry-1").label == CHINESE("retry")
    press(page, "icons-edit-1")
    press(page, "icons-undo-1")
    ask(page, "三")  # another round, which is not edited
    assert [area.key for area in page.text_area] == ["system"]


def test_a_question_waits_for_what_the_tab_kept_and_clear_keeps_a_pending_answer(
    open_page: Callable[..., AppTest], talking: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a tab outlives a server, the question comes first."""

    def memory(content: str | None, texts: Any, on_found: Callable[[], None]) -> None:
        st.button(str(content), key="found", on_click=on_found)

    monkeypatch.setattr(streamlit_page, "memory", memory)
    page = open_page()
    del page.session_state["has_memory"]
    page.session_state["memory"] = SimpleNamespace(found='[["一", "二"]]')
    assert history(ask(page, "三")) == []
    assert page.button("found").label == "None"
    press(page, "found")
    assert history(page) == [("一", "二"), ("三", "三")]
    assert json.loads(page.button("found").label)["history"] == [["一", "二"], ["三", "三"]]

    monkeypatch.setattr(streamlit_page, "show_conversation", lambda *_: None)  # which waits for the answer
    press(page, "clear")
    ask(page, "endless")
    session = page.session_state["chat"]
    assert "unclear" not in {button.key for button in page.button}
    session.wait(5, PATIENCE_S)
    press(page, "clear")
    assert (session.rounds, session.pending) == ([], None)
    press(page, "unclear")
    assert [(question, answer[:5]) for question, answer in history(page)] == [("endless", "第 1 行")]


def test_files_hold_the_settings(
    open_page: Callable[..., AppTest], talking: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = ask(open_page("--system", "简短"), "一")
    content = json.loads(FORMS["json"][2](page.session_state["chat"].transcript))
    assert (content["system"], content["settings"]["top_p"]) == ("简短", 0.6)
    content |= {
        "system": "详细",
        "settings": {"top_p": 0.5, "max_length": 4096, "top_k": 200, "repetition_penalty": 1.5},
    }

    def opening(session: ChatSession, *_: object) -> None:
        streamlit_page.open_conversation(session, json.dumps(content).encode())

    other = open_page()
    with monkeypatch.context() as patch:
        patch.setattr(streamlit_page, "_ask", opening)
        press(other.run(), "starter-0")
    values = {slider.key: slider.value for slider in other.sidebar.slider}
    assert values == {"max_length": 1024, "temperature": 0.95, "top_p": 0.5, "top_k": 200}
    assert other.text_area("system").value == "详细"
    assert other.session_state["chat"].options["repetition_penalty"] == 1.5
    assert history(other) == history(page)


@pytest.fixture
def locale(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Sets the browser's language."""
    return lambda name: monkeypatch.setattr(type(context), "locale", name)


def shown_texts(page: AppTest) -> list[str]:
    """Labels, tooltips and values of all elements."""
    elements = [*page.main, *page.sidebar, *page.chat_input]
    names = ("label", "help", "placeholder", "value", "body")
    found = [getattr(getattr(element, "proto", element), name, "") for element in elements for name in names]
    return [text for text in found if isinstance(text, str) and text]


def test_the_page_speaks_the_language_of_the_browser(
    open_page: Callable[..., AppTest], talking: None, locale: Callable[[str], None]
) -> None:
    chinese = re.compile("[\u4e00-\u9fff]")
    assert all(chinese.search(text[0]) or text[0] == text[1] for text in TEXTS.values())
    assert not any(chinese.search(text[1]) for text in TEXTS.values())
    for name, is_chinese in (("zh-TW", True), ("fr", False)):
        locale(name)
        page = ask(open_page(), "long")
        texts = shown_texts(page)
        assert len(texts) > 25
        assert any(chinese.search(text) for text in texts) == is_chinese
        assert (texts_for(name)("length") in page.main.caption[-1].value) is True


def test_old_rounds_fall_out_visibly(open_page: Callable[..., AppTest], talking: None) -> None:
    page = open_page()
    session = page.session_state["chat"]
    session.rounds = [Round(f"第{number}个", (Reply("好", "stop"),)) for number in range(MAX_ROUNDS)]
    forgotten = CHINESE("forgotten", limit=MAX_ROUNDS, rounds=1)
    assert not any(forgotten in caption.value for caption in page.run().main.caption)
    ask(page, "你好")
    assert history(page)[0][0] == "第1个"
    assert len(page.chat_message) == 2 * MAX_ROUNDS
    assert any(forgotten in caption.value for caption in page.main.caption)


def test_initial_values_are_those_of_flags_and_variables(
    open_page: Callable[..., AppTest], talking: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHATGLM_MAX_LENGTH", "5000")
    page = open_page("--top-p", "0.3", "--temperature", "1.5", "--seed", "3", "--system", "简短")
    sliders = [(slider.key, slider.max, slider.value) for slider in page.sidebar.slider]
    assert sliders[:3] == [("max_length", 1024, 1024), ("temperature", 1.5, 1.5), ("top_p", 1, 0.3)]
    assert (page.number_input("seed").value, page.text_area("system").value) == (3, "简短")


def test_the_server_says_where_it_is_and_looks_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings are read from the folder of the project."""
    monkeypatch.chdir(ROOT)
    options = config.get_config_options(force_reparse=True)
    expected = {"browser.gatherUsageStats": False, "server.address": "127.0.0.1", "server.headless": True}
    assert {name: options[name].value for name in expected} == expected
    assert options["runner.fastReruns"].value is False


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "/no/such/folder"], "没有文件夹 /no/such/folder"),
        (["--no-such-flag"], "no-such-flag"),
        (["--top-p", "2"], "at most 1"),
    ],
)
def test_what_is_wrong_at_the_start_is_one_message(
    flags: list[str], message: str, open_page: Callable[..., AppTest]
) -> None:
    page = open_page(*flags)
    [error] = page.error
    assert message in error.value.replace("\\", "")
    assert not page.chat_input


def test_help_is_on_the_page(open_page: Callable[..., AppTest]) -> None:
    assert "--ptuning-checkpoint" in open_page("--help").code[0].value


@pytest.mark.parametrize(
    ("is_installed", "flags", "message"),
    [
        (True, ["--model", "a b"], "Run: streamlit run web_demo2.py -- --model 'a b'"),
        (True, ["--top-p", "2"], "at most 1"),
        (False, [], "Run: pip install streamlit"),
    ],
)
def test_the_script_without_streamlit(
    is_installed: bool,
    flags: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if not is_installed:
        monkeypatch.setitem(sys.modules, "streamlit", None)
    monkeypatch.setattr(sys, "argv", [SCRIPT, *flags])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(SCRIPT, run_name="__main__")
    assert end.value.code == 2
    streams = capsys.readouterr()
    assert len(streams.err.splitlines()) == 1
    assert message in streams.err
