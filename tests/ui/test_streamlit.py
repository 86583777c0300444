"""The Streamlit page: its text, its chat, the page without a browser, and all of it in Chromium."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("streamlit", reason="the page needs Streamlit: pip install streamlit")

from chatglm.ui.streamlit.chat import AT_LIMIT, MAX_ROUNDS, Answering, Chat, Round
from chatglm.ui.streamlit.markdown import Piece, pieces, plain, prose
from chatglm.ui.streamlit.page import CLEAR, DEMO, PLACEHOLDER, STOP, TITLE, show_growing
from chatglm.ui.terminal.loop import STOPPED
from streamlit.runtime.scriptrunner import RerunData, RerunException, StopException
from streamlit.testing.v1 import AppTest

from chatglm.cli.flags import ANSWER_FLAGS, MODEL_FLAGS
from chatglm.errors import InvalidLogitsError
from chatglm.pipeline import Pipeline, load_pipeline
from tests.ui.browser import Visitor, started_browser

ROOT = Path(__file__).parents[2]
DOOR = str(ROOT / "web_demo2.py")
PATIENCE_S = 60


def eventually(is_true: Callable[[], Any]) -> Any:
    """What `is_true` gives once it is something."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        if result := is_true():
            return result
        time.sleep(0.02)
    raise AssertionError("it did not happen in time")


# Text


@given(st.text("![](`~$\\\n :x|<", max_size=60))
def test_no_prose_and_no_formula_can_name_a_picture(text: str) -> None:
    for piece in pieces(text):
        if piece.kind == "prose":
            assert "![" not in prose(piece.text)
        if piece.kind == "formula":
            assert "![" not in piece.text
            assert "$$" not in piece.text  # which would end it, and let what follows be Markdown


@given(st.text("ab`~ \n$", max_size=40), st.text("ab!*_[<$\\ \n", max_size=40), st.text("ab \n", max_size=40))
def test_code_is_shown_as_it_is(before: str, code: str, after: str) -> None:
    fence = "`" * 41
    found = pieces(f"x{before}\n~~~\n{fence}\n{fence}py\n{code}\n{fence}\n{after}")
    if "~~~" not in before and "```" not in before:
        assert found[-1].text.strip("\n") == f"{fence}\n{fence}py\n{code}\n{fence}\n{after}".strip("\n")
    assert Piece("code", code, "py") in pieces(f"说：\n{fence}py\n{code}\n{fence}\n{after}")


def test_parts_of_an_answer() -> None:
    text = "1. 看：\n   ```c++\n   #include <x>\n     y\n   ```\n\\[a_1\n+ b\\]\n$$n![1]$$\n完\n```\n还没"
    assert pieces(text) == [
        Piece("prose", "1. 看："),
        Piece("code", "#include <x>\n  y", "c++"),
        Piece("formula", "a_1\n+ b"),
        Piece("formula", "n!{}[1]"),
        Piece("prose", "完"),
        Piece("code", "还没"),
    ]


@pytest.mark.parametrize(
    ("text", "markdown"),
    [
        ("质能方程 $E=mc^2$ 与 \\(a\\)", "质能方程 $E=mc^2$ 与 $a$"),
        ("$5 和 $10", "\\$5 和 \\$10"),
        ("`$HOME` 与 $HOME", "`$HOME` 与 \\$HOME"),
        ("\\$5", "\\$5"),
        (":red[x] 10:30", "\\:red[x] 10:30"),
        ("一\n二\n\n三", "一  \n二\n\n三"),
    ],
)
def test_prose_means_what_it_says(text: str, markdown: str) -> None:
    assert prose(text) == markdown


def test_plain_text_has_no_markup() -> None:
    assert plain("/a_b_c/*.bin <x>") == "\\/a\\_b\\_c\\/\\*\\.bin \\<x\\>"


# The chat


@pytest.fixture(scope="module")
def endless(tiny_folder: Path) -> Iterator[Pipeline]:
    with load_pipeline(tiny_folder) as pipeline:
        yield pipeline


def answering(chat: Chat) -> Answering:
    assert chat.answering is not None
    return chat.answering


def test_a_stopped_answer_keeps_its_text_and_ends_in_the_engine(endless: Pipeline) -> None:
    chat = Chat()
    chat.ask(endless, "长", {"temperature": 0.0})
    text, is_done = answering(chat).wait(3, PATIENCE_S)
    assert text
    assert not is_done
    chat.ask(endless, "另一个", {"max_length": 40, "temperature": 0.0})  # a new question stops the old one
    [stopped] = chat.rounds
    assert stopped.answer.startswith(text)
    assert stopped.notes == (STOPPED,)
    eventually(lambda: answering(chat).is_done)
    chat.settle()
    assert chat.rounds[1].notes[0] == AT_LIMIT
    assert chat.history == [(round_.query, round_.answer) for round_ in chat.rounds]
    assert endless.engine.stats().running == 0

    chat.ask(endless, "长", {})
    chat.clear()
    assert (chat.rounds, chat.answering) == ([], None)
    eventually(lambda: endless.engine.stats().running == 0)


def test_what_fails_in_the_middle_is_shown_and_not_told_to_the_model(
    endless: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chatglm.generation.next_token.require_finite", raise_invalid_scores)
    chat = Chat()
    chat.ask(endless, "你好", {})
    eventually(lambda: answering(chat).is_done)
    chat.settle()
    assert chat.rounds == [Round("你好", "", error="NaN.")]
    assert chat.history == []


def raise_invalid_scores(*_: object) -> None:
    raise InvalidLogitsError("NaN.")


class Interrupted:
    """An answer during which Streamlit takes the thread back."""

    query = "你好"

    def __init__(self, interruption: BaseException) -> None:
        self._interruption = interruption
        self.is_cancelled = False

    def wait(self, num_seen: int, timeout: float) -> tuple[str, bool]:
        raise self._interruption

    def cancel(self) -> None:
        self.is_cancelled = True


@pytest.mark.parametrize(
    ("interruption", "is_cancelled"), [(RerunException(RerunData()), False), (StopException(), True)]
)
def test_an_answer_ends_when_its_reader_leaves_but_not_when_the_page_is_drawn_anew(
    interruption: BaseException, is_cancelled: bool
) -> None:
    answer = Interrupted(interruption)
    with pytest.raises(type(interruption)):
        show_growing(answer)  # type: ignore[arg-type]
    assert answer.is_cancelled == is_cancelled


# The page without a browser


@pytest.fixture(autouse=True)
def _clean_environment(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHATGLM_CACHE", environment["CHATGLM_CACHE"])
    for flag in (*MODEL_FLAGS, *ANSWER_FLAGS):
        monkeypatch.delenv(flag.variable, raising=False)


@pytest.fixture
def open_page(monkeypatch: pytest.MonkeyPatch) -> Callable[..., AppTest]:
    def start(*flags: str) -> AppTest:
        monkeypatch.setattr(sys, "argv", [DOOR, *flags])
        page = AppTest.from_file(DOOR, default_timeout=PATIENCE_S).run()
        assert not page.exception
        return page

    return start


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any, dict[str, Any]]]:
    """What the page asks of the pipeline: (query, history, parameters)."""
    asked: list[tuple[str, Any, dict[str, Any]]] = []
    submit = Pipeline.submit

    def record(self: Pipeline, query: str, history: Any, **parameters: Any) -> Any:
        asked.append((query, list(history), parameters))
        return submit(self, query, history, **parameters)

    monkeypatch.setattr(Pipeline, "submit", record)
    return asked


def say(page: AppTest, text: str) -> AppTest:
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
    say(page, " 你好 ")
    answer = texts(page)[1]
    assert answer
    assert texts(page) == ["你好", answer]
    page.sidebar.slider[0].set_value(0)
    page.sidebar.slider[1].set_value(0.25)
    say(page, "你是谁")
    same = {"top_k": None, "seed": 7, "system": None, "temperature": 0.0}
    assert requests == [
        ("你好", [], {**same, "max_length": 2048, "top_p": 0.6}),
        ("你是谁", [("你好", answer)], {**same, "max_length": None, "top_p": 0.25}),
    ]
    assert len(page.chat_message) == 4

    assert [button.label for button in page.button] == [CLEAR]
    page.button[0].click().run()
    assert not page.chat_message
    assert texts(say(page, "你好")) == ["你好", answer]
    assert requests[-1][1] == []


def test_a_question_that_cannot_be_answered_is_a_sentence(
    open_page: Callable[..., AppTest], requests: list[Any]
) -> None:
    page = say(open_page("--temperature", "0"), "长" * 3000)
    [error] = page.error
    assert "tokens" in error.value
    assert not say(page, "你好").button[0].disabled
    assert texts(page)[3]
    assert requests[-1][1] == []  # the model is not told


def test_old_rounds_fall_out_visibly(open_page: Callable[..., AppTest]) -> None:
    page = open_page()
    chat = page.session_state["chat"]
    chat.rounds = [Round(f"第{number}个", "好") for number in range(MAX_ROUNDS)]
    page.run()
    assert not any("已移除" in caption.value for caption in page.main.caption)
    say(page, "你好")
    assert len(page.chat_message) == 2 * MAX_ROUNDS
    assert texts(page)[0] == "第1个"
    assert any("更早的 1 轮已移除" in caption.value for caption in page.main.caption)


def test_sliders_begin_where_flags_and_variables_say(
    open_page: Callable[..., AppTest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHATGLM_MAX_LENGTH", "5000")
    page = open_page("--top-p", "0.3", "--temperature", "1.5")
    assert [(slider.max, slider.value) for slider in page.sidebar.slider] == [(5000, 5000), (1, 0.3), (1.5, 1.5)]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--model", "/no/such/folder"], "There is no folder"),
        (["--no-such-flag"], "no-such-flag"),
        (["--top-p", "2"], "at most 1"),
    ],
)
def test_what_is_wrong_at_the_start_is_one_sentence(
    flags: list[str], said: str, open_page: Callable[..., AppTest]
) -> None:
    page = open_page(*flags)
    [error] = page.error
    assert said in error.value.replace("\\", "")
    assert not page.chat_input


def test_help_is_on_the_page(open_page: Callable[..., AppTest]) -> None:
    assert "--ptuning-checkpoint" in open_page("--help").code[0].value


@pytest.mark.parametrize(
    ("before", "flags", "said"),
    [
        ("", ["--model", "a b"], "Run: streamlit run web_demo2.py -- --model 'a b'"),
        ("", ["--top-p", "2"], "at most 1"),
        ("sys.modules['streamlit'] = None;", [], "Run: pip install streamlit"),
    ],
)
def test_the_door_without_streamlit(before: str, flags: list[str], said: str, environment: dict[str, str]) -> None:
    run = f"import sys, runpy; {before} runpy.run_path({DOOR!r}, run_name='__main__')"
    ended = subprocess.run(
        [sys.executable, "-c", run, *flags],
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
        timeout=PATIENCE_S,
    )
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1
    assert said in ended.stderr


# All of it in Chromium

HOSTILE = """\
<script>document.title = "taken"</script><img src="http://outside.test/1.png" onerror="document.title = 'taken'">
![图](http://outside.test/2.png) ![图][ref] 公式 $E=mc^2$ **重点**

[ref]: http://outside.test/3.png
```python
print("<b>", end="![](http://outside.test/4.png)")
```
$$\\frac{1}{2}$$"""
# Remembers every state of the last message.
WATCH = """() => {
    window.seen = new Set();
    const look = () => {
        const last = [...document.querySelectorAll('[data-testid=stChatMessage]')].pop();
        if (last) window.seen.add(last.innerText);
    };
    new MutationObserver(look).observe(document.body, {subtree: true, childList: true, characterData: true});
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    pytest.importorskip("playwright", reason="The tests in a browser need playwright: pip install playwright")
    with started_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def address(tiny_folder: Path, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of its own, with a model whose answers hardly ever end."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "streamlit", "run", DOOR, "--server.port", str(port)]
    said = tmp_path_factory.mktemp("streamlit") / "said.txt"
    with said.open("wb") as output:
        server = subprocess.Popen(
            [*command, "--", "--model", str(tiny_folder), "--temperature", "0"],
            env=environment, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        eventually(lambda: server.poll() is not None or can_connect(port))
        assert server.poll() is None, said.read_text()
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        try:
            server.wait(PATIENCE_S)
        finally:
            server.kill()
    assert "Traceback" not in said.read_text()


def can_connect(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Guest(Visitor):
    """Somebody with a browser of their own, at the page."""

    def __init__(self, browser: Any, address: str, **profile: Any) -> None:
        super().__init__(browser, address, **profile)
        self.box = self.page.get_by_test_id("stChatInputTextArea")
        self.box.wait_for()
        self.messages = self.page.get_by_test_id("stChatMessage")
        self.stop = self.page.get_by_role("button", name=STOP)
        self.clear = self.page.get_by_role("button", name=CLEAR)

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.context.close()
        assert self.outside == []

    def say(self, text: str) -> None:
        self.box.fill(text)
        self.box.press("Enter")
        self.stop.wait_for()

    def wait_for_text(self, length: int = 1) -> None:
        """Until the last message has so many characters."""
        eventually(lambda: self.messages.count() and len(self.messages.last.inner_text()) >= length)

    def end_answer(self) -> None:
        self.stop.click()
        self.clear.wait_for()


@pytest.fixture(scope="module")
def guest(browser: Any, address: str) -> Iterator[Guest]:
    """At a desk."""
    with Guest(browser, address) as guest:
        yield guest


@pytest.fixture(scope="module")
def phone(browser: Any, address: str) -> Iterator[Guest]:
    """At the same time, on a phone."""
    with Guest(browser, address, viewport={"width": 390, "height": 780}) as guest:
        yield guest


def test_streaming_and_stop(guest: Guest) -> None:
    assert guest.page.title() == TITLE
    guest.page.evaluate(WATCH)
    guest.say("长")
    guest.wait_for_text(100)
    top_p = guest.page.get_by_role("slider").nth(1)
    top_p.press("ArrowRight")  # Streamlit runs the page anew for it, and the answer goes on
    guest.wait_for_text(len(guest.messages.last.inner_text()) + 20)
    guest.end_answer()
    assert STOPPED in guest.messages.last.inner_text()
    assert "0.61" in guest.page.get_by_test_id("stSlider").nth(1).inner_text()
    growing = {len(seen) for seen in guest.page.evaluate("[...window.seen]") if "AI正在回复" in seen}
    assert len(growing) >= 3


def test_hostile_text_on_a_phone(phone: Guest) -> None:
    phone.say(HOSTILE)
    phone.wait_for_text(50)
    phone.end_answer()
    question = phone.messages.nth(-2)
    shown = question.inner_text()
    for part in ('<script>document.title = "taken"</script>', "![图](http://outside.test/2.png)", "onerror="):
        assert part in shown
    assert 'print("<b>", end="![](http://outside.test/4.png)")' in question.locator("code").inner_text()
    assert question.locator(".katex").count() == 2
    assert question.locator("strong").inner_text() == "重点"
    assert phone.page.locator("[data-testid=stChatMessage] :is(img, script, iframe)").count() == 0
    assert phone.page.title() == TITLE
    assert phone.page.evaluate("document.documentElement.scrollWidth") <= 390
    for part_of_page in (phone.clear, phone.box):
        place = part_of_page.bounding_box()
        assert place["x"] >= 0
        assert place["x"] + place["width"] <= 390


def test_two_at_once_see_their_own_chats(guest: Guest, phone: Guest) -> None:
    guest.say("甲的问题")
    phone.say("乙的问题")
    for one, own, other in ((guest, "甲", "乙"), (phone, "乙", "甲")):
        one.wait_for_text(50)
        one.end_answer()
        content = one.page.inner_text("body")
        assert f"{own}的问题" in content
        assert f"{other}的问题" not in content
    guest.clear.click()
    guest.messages.first.wait_for(state="detached")
    assert guest.messages.count() == 0
    assert phone.messages.count() >= 2


def test_the_server_says_where_it_is_and_looks_nowhere_else(environment: dict[str, str]) -> None:
    """The settings are read from the folder of the project."""
    settings = subprocess.run(
        [sys.executable, "-m", "streamlit", "config", "show"],
        capture_output=True, text=True, env=environment, cwd=ROOT, timeout=PATIENCE_S, check=True,
    ).stdout  # fmt: skip
    for line in ("gatherUsageStats = false", 'address = "127.0.0.1"', "headless = true", "fastReruns = false"):
        assert re.search(f"^{re.escape(line)}$", settings, re.MULTILINE), line
