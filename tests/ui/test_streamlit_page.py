"""The Streamlit page without a browser, and the script without Streamlit."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("streamlit", reason="the page needs Streamlit: pip install streamlit")

from streamlit.runtime.scriptrunner import RerunData, RerunException, StopException
from streamlit.testing.v1 import AppTest

from chatglm.cli.flags import ANSWER_FLAGS, MODEL_FLAGS
from chatglm.pipeline import Pipeline
from chatglm.ui.rounds import Reply, Round
from chatglm.ui.session import ChatSession
from chatglm.ui.streamlit.streamlit_page import CLEAR, DEMO, MAX_ROUNDS, PLACEHOLDER, TITLE, show_pending
from tests.ui.fake_pipeline import FakePipeline

pytestmark = pytest.mark.xdist_group("streamlit")

ROOT = Path(__file__).parents[2]
SCRIPT = str(ROOT / "web_demo2.py")
PATIENCE_S = 60


class Interrupted(ChatSession):
    """A session whose pending answer is being shown when Streamlit takes the thread back."""

    def __init__(self, interruption: BaseException) -> None:
        super().__init__(FakePipeline())  # type: ignore[arg-type]
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
        show_pending(session)
    assert (session.pending is not None) == is_pending


@pytest.fixture(autouse=True)
def _clean_environment(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHATGLM_CACHE", environment["CHATGLM_CACHE"])
    for flag in (*MODEL_FLAGS, *ANSWER_FLAGS):
        monkeypatch.delenv(flag.variable, raising=False)


@pytest.fixture
def open_page(monkeypatch: pytest.MonkeyPatch) -> Callable[..., AppTest]:
    def start(*flags: str) -> AppTest:
        monkeypatch.setattr(sys, "argv", [SCRIPT, *flags])
        page = AppTest.from_file(SCRIPT, default_timeout=PATIENCE_S).run()
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


def ask(page: AppTest, text: str) -> AppTest:
    page.chat_input[0].set_value(text).run()
    assert not page.exception
    return page


def texts(page: AppTest) -> list[str]:
    return ["\n".join(part.value for part in message.markdown) for message in page.chat_message]


def test_a_chat(open_page: Callable[..., AppTest], requests: list[Any]) -> None:
    page = open_page("--seed", "7")
    assert page.title[0].value == TITLE
    assert page.info[0].value == DEMO
    assert page.chat_input[0].placeholder == PLACEHOLDER
    sliders = {slider.label: (slider.min, slider.max, slider.value) for slider in page.sidebar.slider}
    assert sliders == {"max_length": (0, 4096, 2048), "top_p": (0, 1, 0.6), "temperature": (0, 1, 0.95)}
    assert not page.button

    page.sidebar.slider[2].set_value(0.0)
    ask(page, " 你好 ")
    answer = texts(page)[1]
    assert answer
    assert texts(page) == ["你好", answer]
    page.sidebar.slider[0].set_value(0)
    page.sidebar.slider[1].set_value(0.25)
    ask(page, "你是谁")
    same = {"top_k": None, "seed": 7, "temperature": 0.0}
    assert requests == [
        (["你好"], {**same, "max_length": 2048, "top_p": 0.6}),
        (["你好", answer, "你是谁"], {**same, "max_length": None, "top_p": 0.25}),
    ]
    assert len(page.chat_message) == 4

    assert [button.label for button in page.button] == [CLEAR]
    page.button[0].click().run()
    assert not page.chat_message
    assert texts(ask(page, "你好")) == ["你好", answer]
    assert requests[-1][0] == ["你好"]


def test_a_question_that_cannot_be_answered_is_shown_with_the_reason(
    open_page: Callable[..., AppTest], requests: list[Any]
) -> None:
    page = ask(open_page("--temperature", "0"), "长" * 3000)
    [error] = page.error
    assert "tokens" in error.value
    assert not ask(page, "你好").button[0].disabled
    assert texts(page)[3]
    assert requests[-1][0] == ["你好"]  # the model is not told of the other


def test_old_rounds_fall_out_visibly(open_page: Callable[..., AppTest]) -> None:
    page = open_page()
    session = page.session_state["chat"]
    session.rounds = [Round(f"第{number}个", (Reply("好", "stop"),)) for number in range(MAX_ROUNDS)]
    page.run()
    assert not any("已移除" in caption.value for caption in page.main.caption)
    ask(page, "你好")
    assert len(page.chat_message) == 2 * MAX_ROUNDS
    assert texts(page)[0] == "第1个"
    assert any("更早的 1 轮已移除" in caption.value for caption in page.main.caption)


def test_initial_values_of_the_sliders_are_those_of_flags_and_variables(
    open_page: Callable[..., AppTest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHATGLM_MAX_LENGTH", "5000")
    page = open_page("--top-p", "0.3", "--temperature", "1.5")
    assert [(slider.max, slider.value) for slider in page.sidebar.slider] == [(5000, 5000), (1, 0.3), (1.5, 1.5)]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "/no/such/folder"], "There is no folder"),
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
