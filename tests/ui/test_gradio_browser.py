"""The Gradio page in a real browser, as people use it."""

from __future__ import annotations

import json
import re
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("gradio", reason="The page needs gradio: pip install -r requirements-web.txt")

from chatglm.cli.flags import model_options
from chatglm.pipeline import load_pipeline
from chatglm.ui.gradio.gradio_app import main, make_parser, serving
from tests.serving.servers import PATIENCE_S, process
from tests.ui.browser import PATIENCE_MS, Profile, started_browser

pytestmark = [
    pytest.mark.xdist_group("browser"),
    # Gradio's own: it leaves sockets to the garbage collector and prints warnings on the page as UserWarning.
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]

GREETING = "你好"
# Whether an answer was being made since, which may be over before anybody looks: the button turned, or the figures did.
WATCH = """() => {
    const figures = () => document.querySelector("#note").innerText, before = figures();
    window.wasAnswering = false;
    const look = () => {
        window.wasAnswering ||= Boolean(document.querySelector("#box .stop-button")) || figures() !== before;
    };
    new MutationObserver(look).observe(document.body, {subtree: true, childList: true, characterData: true});
}"""


@contextmanager
def served(*flags: str) -> Iterator[str]:
    """The address of a page that this process serves."""
    arguments = make_parser().parse_args(flags)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with load_pipeline(**model_options(arguments)) as pipeline:
        pipeline.start_engine(max_running=arguments.max_running, max_waiting=arguments.max_waiting)
        with serving(pipeline, arguments, port):
            yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def demo(_clean_module_environment: None) -> Iterator[str]:
    """A page with the demo model."""
    with served() as address:
        yield address


@pytest.fixture(scope="module")
def endless(tiny_folder: Path, _clean_module_environment: None) -> Iterator[str]:
    """A page with a model whose answers are long nonsense."""
    with served("--model", str(tiny_folder), "--max-running", "2", "--max-waiting", "0") as address:
        yield address


@pytest.fixture(scope="module")
def browser(demo: str, endless: str) -> Iterator[Any]:
    """After the pages: Gradio does not start a server where Playwright runs its event loop."""
    with started_browser() as browser:
        yield browser


class Person:
    """Somebody who chats on a page that was just opened."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.box = page.locator("#box textarea")
        self.answers = page.locator("#chat .bot.message")
        self.questions = page.locator("#chat .user.message")
        self.note = page.locator("#note")
        self.wait_until_open()

    def wait_until_open(self) -> None:
        self.box.wait_for()
        self.page.locator("#chat .example").first.wait_for()

    def __enter__(self) -> Person:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.page.close()

    def ask(self, question: str) -> None:
        self.box.fill(question)
        self.box.press("Enter")

    def ask_and_wait(self, question: str) -> str:
        """The answer."""
        before = self.answers.count()
        self.ask(question)
        self.wait_until_done(before + 1)
        return str(self.answers.last.inner_text())

    def wait_until_done(self, num_answers: int) -> None:
        self.until(lambda: self.answers.count() == num_answers and self.page.locator("#box .submit-button").count())

    def clear(self) -> None:
        self.box.fill("")
        self.page.locator("#clear").click()
        self.until(lambda: not self.questions.count() and not self.note.inner_text().strip())

    def retry(self) -> None:
        """Until the new answer is there, which may look like the old one."""
        self.page.evaluate(WATCH)
        self.page.locator("#chat").get_by_label("重试").click()
        self.until(lambda: self.page.evaluate("window.wasAnswering"))
        self.wait_until_done(self.questions.count())

    def until(self, condition: Callable[[], Any]) -> Any:
        """Waits in the browser's own time."""
        for _ in range(PATIENCE_MS // 50):
            if found := condition():
                return found
            self.page.wait_for_timeout(50)
        raise AssertionError(f"never: {self.page.locator('#chat').inner_text()!r}, {self.note.inner_text()!r}")

    def choose(self, name: str, value: str) -> None:
        """Fill a field of the settings, which are unfolded for it."""
        fold = self.page.locator("#settings > button")
        if "open" not in (fold.get_attribute("class") or ""):
            fold.click()
        field = self.page.locator(f"#{name} input[type=number], #{name} textarea, #{name} input[type=text]").first
        field.fill(value)
        field.blur()


@pytest.fixture(scope="module")
def profile(browser: Any) -> Iterator[Profile]:
    with Profile(browser) as profile:
        yield profile


@pytest.fixture(scope="module")
def demo_page(profile: Profile, demo: str) -> Iterator[Person]:
    with Person(profile.open(demo)) as person:
        yield person


@pytest.fixture
def person(demo_page: Person) -> Person:
    """Somebody at the demo model, who has cleared the page: opening one takes long."""
    demo_page.clear()
    return demo_page


@pytest.fixture
def listener(profile: Profile, endless: str) -> Iterator[Person]:
    """Somebody at the nonsense model."""
    with Person(profile.open(endless)) as person:
        yield person


def test_a_conversation(person: Person) -> None:
    """A banner, a greeting that is understood, a second question that leans on the first, figures below."""
    assert "迷你演示模型" in person.page.locator("#demo-banner").inner_text()
    assert "你好" in person.ask_and_wait(GREETING)
    person.ask_and_wait("我叫小明")
    assert "小明" in person.ask_and_wait("我叫什么名字")
    assert re.search(r"demo · [\d.]+ token/秒 · 上下文 \d+ / 1024", person.note.inner_text())
    assert person.box.input_value() == ""


def test_shift_enter_breaks_the_line(person: Person) -> None:
    person.box.fill("一")
    person.box.press("Shift+Enter")
    person.box.type("二")
    assert person.box.input_value() == "一\n二"
    assert person.questions.count() == 0


def test_a_starter_is_asked_with_one_click(person: Person) -> None:
    person.page.locator("#chat .example").first.click()
    person.wait_until_done(1)
    assert "介绍" in person.questions.first.inner_text()


def test_text_grows_and_stop_keeps_it(listener: Person) -> None:
    """At least three lengths are seen before the stop; after it nothing is added, and the next question works."""
    listener.ask("hello")
    seen: set[int] = set()

    def look() -> bool:
        if listener.answers.count():
            seen.add(len(listener.answers.last.inner_text()))
        return len(seen) >= 4

    listener.until(look)
    listener.page.locator("#box .stop-button").click(force=True)
    listener.wait_until_done(1)
    assert "已停止" in listener.note.inner_text()
    kept = listener.answers.last.inner_text()
    assert len(kept) >= max(seen)
    listener.ask("again")
    listener.until(lambda: listener.answers.count() == 2)
    listener.page.locator("#box .stop-button").click(force=True)
    listener.wait_until_done(2)
    assert listener.answers.first.inner_text() == kept


def test_leaving_the_page_frees_the_slot(profile: Profile, endless: str, listener: Person) -> None:
    """There are two slots: with three people gone in the middle of their answers, the fourth is answered."""
    for _ in range(3):
        with Person(profile.open(endless)) as gone:
            gone.ask("hello")
            gone.until(gone.answers.count)
    listener.ask("hello")
    listener.until(listener.answers.count)
    listener.page.locator("#clear").click()


def test_retry_undo_and_edit(person: Person) -> None:
    person.ask_and_wait("3+5等于几")
    person.retry()
    person.until(lambda: "8" in person.answers.last.inner_text())
    person.wait_until_done(1)
    person.page.locator("#chat").get_by_label("编辑").click()
    editor = person.page.locator("#chat textarea")
    assert editor.input_value() == "3+5等于几"
    editor.fill("2+2等于几 & <b>")
    person.page.locator("#chat").get_by_label("发送").click()
    person.until(lambda: person.questions.last.inner_text().strip() == "2+2等于几 & <b>")
    person.wait_until_done(1)
    person.page.locator("#chat").get_by_label("撤销").click()
    person.until(lambda: person.answers.count() == 0)
    assert person.box.input_value() == "2+2等于几 & <b>"


def test_clear_forgets(person: Person) -> None:
    person.ask_and_wait("我叫小明")
    person.clear()
    assert "小明" not in person.ask_and_wait("我叫什么名字")


def test_settings_reach_the_answer(listener: Person) -> None:
    """The length ends it; the same seed gives it again, another one does not; a bad one is an error message."""
    listener.choose("max-length", "24")
    listener.choose("temperature", "0.9")
    made = []
    for seed in ("7", "7", "8"):
        listener.choose("seed", seed)
        made.append(listener.ask_and_wait("hello"))
        assert "已达到长度上限" in listener.note.inner_text()
        listener.clear()
    assert made[0] == made[1] != made[2]
    listener.choose("seed", "seven")
    listener.ask("hello")
    listener.until(lambda: "seven" in listener.note.inner_text())
    assert listener.box.input_value() == "hello"


def test_a_question_that_cannot_fit_leaves_the_page_usable(person: Person) -> None:
    question = "很长" * 3000
    person.ask(question)
    person.until(lambda: "tokens" in person.note.inner_text())
    assert person.box.input_value() == question
    assert person.questions.count() == 0
    assert "你好" in person.ask_and_wait(GREETING)


def test_a_long_conversation_is_cut_visibly(listener: Person) -> None:
    listener.choose("max-length", "64")
    for number in range(4):
        listener.ask_and_wait(f"hello number {number}")
    assert "已不在模型的视野内" in listener.note.inner_text()
    assert listener.questions.count() == 4


def test_html_is_text_code_and_formulas_are_shown(person: Person) -> None:
    person.ask_and_wait(
        "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'> ![x](http://example.com/x.png)\n"
        "```python\nif a < b: print('<b>')\n```\n$\\frac{a}{b} < 1$ and\n$$\\sum_{i=1}^n i$$"
    )
    shown = person.questions.last
    assert "<script>window.hacked = 1</script>" in shown.inner_text()
    assert "![x](http://example.com/x.png)" in shown.inner_text()
    assert "if a < b: print('<b>')" in shown.locator("pre").inner_text()
    person.until(lambda: shown.locator(".katex").count() == 2)
    assert shown.locator("img, script").count() == 0
    assert person.page.evaluate("window.hacked") is None


def test_two_people_know_nothing_of_each_other(profile: Profile, person: Person, demo: str) -> None:
    with Person(profile.open(demo)) as other:
        person.ask("我叫小明")
        other.ask("我叫小红")
        person.wait_until_done(1)
        other.wait_until_done(1)
        assert "小明" in person.ask_and_wait("我叫什么名字")
        assert "小红" in other.ask_and_wait("我叫什么名字")
        assert "小明" not in other.page.locator("#chat").inner_text()


def test_reload_starts_anew_as_the_page_says(person: Person) -> None:
    assert "刷新页面会清空对话" in person.page.locator("#reload").inner_text()
    person.ask_and_wait("我叫小明")
    person.page.reload()
    person.wait_until_open()
    assert "小明" not in person.ask_and_wait("我叫什么名字")


def test_save_then_open(profile: Profile, person: Person, demo: str, tmp_path: Path) -> None:
    person.ask_and_wait("我叫小明")
    person.page.locator("#settings > button").click()
    person.page.locator("#transcript > button").click()
    saved = {}
    for form, suffix in (("json", ".json"), ("markdown", ".md"), ("html", ".html")):
        with person.page.expect_download() as download:
            person.page.locator(f"#export-{form}").click()
        assert download.value.suggested_filename.endswith(suffix)
        saved[form] = tmp_path / f"saved{suffix}"
        download.value.save_as(saved[form])
    history = json.loads(saved["json"].read_text(encoding="utf-8"))["history"]
    assert [question for question, _ in history] == ["我叫小明"]
    for form in ("markdown", "html"):
        assert history[0][1] in saved[form].read_text(encoding="utf-8")

    with Person(profile.open(demo)) as other:
        other.page.locator("#settings > button").click()
        other.page.locator("#transcript > button").click()
        with other.page.expect_file_chooser() as chooser:
            other.page.locator("#import").click()
        chooser.value.set_files(saved["json"])
        other.until(lambda: other.questions.count() == 1)
        assert "已载入 1 轮对话" in other.note.inner_text()
        assert "小明" in other.ask_and_wait("我叫什么名字")
        (tmp_path / "bad.json").write_text('{"rounds": 1}', encoding="utf-8")
        with other.page.expect_file_chooser() as chooser:
            other.page.locator("#import").click()
        chooser.value.set_files(tmp_path / "bad.json")
        other.until(lambda: "文件里没有对话" in other.note.inner_text())
        assert other.questions.count() == 2


def test_english_on_a_phone_in_the_dark(browser: Any, demo: str) -> None:
    """Nothing sticks out to the side, everything is within reach, the theme can be changed."""
    options = {"locale": "en-US", "viewport": {"width": 375, "height": 740}, "color_scheme": "dark"}
    with Profile(browser, **options) as phone:
        person = Person(phone.open(demo))
        assert person.page.locator("#clear").inner_text() == "Clear"
        assert "toy model" in person.page.locator("#demo-banner").inner_text()
        assert "GLM-Tiny" in person.ask_and_wait("who are you")
        assert "tokens/s" in person.note.inner_text()
        assert person.page.evaluate("document.documentElement.scrollWidth") <= 375
        assert person.box.is_visible()
        is_dark = "document.body.classList.contains('dark')"
        assert person.page.evaluate(is_dark)
        person.page.locator("#theme").click()
        assert not person.page.evaluate(is_dark)


def test_a_password_then_ctrl_c(environment: dict[str, str]) -> None:
    with process("web_demo.py", "--port", "0", "--auth", "me:secret", environment=environment) as server:
        url = server.wait_until_listening()
        assert httpx.get(f"{url}/config", timeout=PATIENCE_S).status_code == 401
        with httpx.Client(base_url=url, timeout=PATIENCE_S) as client:
            assert client.post("/login", data={"username": "me", "password": "wrong"}).status_code == 400
            assert client.post("/login", data={"username": "me", "password": "secret"}).status_code == 200
            assert client.get("/config").status_code == 200
        server.send(signal.SIGINT)
        assert server.wait() == 130
        assert "secret" not in server.stdout.text + server.stderr.text
        assert "Traceback" not in server.stderr.text


def test_a_port_in_use(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["--port", str(port)]) == 1
    assert capsys.readouterr().err == f"Port {port} on 127.0.0.1 is in use. Give another one with --port.\n"
