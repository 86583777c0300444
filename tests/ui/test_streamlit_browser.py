"""The Streamlit page in Chromium, with a model that does what the question says."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("streamlit", reason="the page needs Streamlit: pip install streamlit")

from chatglm.ui.streamlit.page_texts import texts_for
from tests.serving.servers import eventually
from tests.ui.browser import Profile, started_browser

pytestmark = [pytest.mark.xdist_group("streamlit"), pytest.mark.slow]

ROOT = Path(__file__).parents[2]
PATIENCE_S = 60
CHINESE = texts_for("zh-CN")
KEPT = "sessionStorage.getItem('chatglm-conversation')"
PAGE = "document.querySelector('.stMainBlockContainer')"


class Server:
    """`streamlit run` in a process of its own."""

    def __init__(self, log: Path, environment: dict[str, str]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self._log, self._environment = log, environment
        self.start()

    def start(self) -> None:
        """Also again, at the same address."""
        script = str(ROOT / "tests" / "ui" / "streamlit_script.py")
        with self._log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "streamlit", "run", script, "--server.port", str(self.port)],
                env={**self._environment, "PYTHONPATH": str(ROOT)}, cwd=ROOT,
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def wait(self) -> None:
        """Until it listens."""
        eventually(lambda: self.process.poll() is not None or self._can_connect())
        assert self.process.poll() is None, self.log

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(PATIENCE_S)
        finally:
            self.process.kill()

    @property
    def log(self) -> str:
        return self._log.read_text()

    def _can_connect(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


@pytest.fixture(scope="module")
def server(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("streamlit") / "server.log", environment)
    try:
        yield server
    finally:
        server.stop()
    assert "Traceback" not in server.log


@pytest.fixture(scope="module")
def browser(server: Server) -> Iterator[Any]:
    pytest.importorskip("playwright", reason="The tests in a browser need playwright: pip install playwright")
    with started_browser() as browser:
        server.wait()  # which takes as long to start
        yield browser


class Guest:
    """Somebody at the page."""

    def __init__(self, page: Any, texts: Any = CHINESE) -> None:
        self.page = page
        self._texts = texts
        self.box = page.get_by_test_id("stChatInputTextArea")
        self.box.wait_for()
        self.messages = page.get_by_test_id("stChatMessage")
        self.answers = page.locator(".markdown")

    def button(self, name: str) -> Any:
        return self.page.get_by_role("button", name=self._texts(name)).last

    def ask(self, text: str) -> None:
        self.box.fill(text)
        self.box.press("Enter")

    def ask_and_wait(self, text: str) -> None:
        """Until the answer has ended."""
        index = self.messages.count() // 2
        self.ask(text)
        self.page.locator(f".st-key-actions-{index}").wait_for()

    def says(self, text: str) -> None:
        """Wait until the page has a text."""
        self.page.get_by_text(text).filter(visible=True).last.wait_for()


@pytest.fixture(scope="module")
def guest(browser: Any, server: Server) -> Iterator[Guest]:
    """With a wide screen."""
    with Profile(browser, permissions=["clipboard-read", "clipboard-write"]) as profile:
        yield Guest(profile.open(server.address))


def test_an_answer_is_read_while_it_grows_then_stopped_continued_and_kept(guest: Guest, server: Server) -> None:
    page = guest.page
    assert page.title() == CHINESE("title")
    guest.ask("endless")
    guest.says("第 3 行")
    page.evaluate("document.querySelector('.markdown p').mark = 'drawn once'")
    page.wait_for_function(f"{PAGE}.scrollTop > 100")  # the page follows
    page.get_by_role("slider").nth(2).press("ArrowRight")  # Streamlit runs the page anew for it, and the answer goes on
    page.mouse.move(700, 300)
    page.mouse.wheel(0, -100_000)
    page.wait_for_function(f"{PAGE}.scrollTop === 0")
    num_lines = page.locator(".markdown p").count()
    page.wait_for_function(f"document.querySelectorAll('.markdown p').length > {num_lines + 5}")
    assert page.evaluate(f"{PAGE}.scrollTop") == 0
    assert page.evaluate("document.querySelector('.markdown p').mark") == "drawn once"
    page.keyboard.press("Escape")
    guest.says(CHINESE("stopped"))
    page.get_by_test_id("stSlider").nth(2).get_by_text("0.61").wait_for()

    guest.button("copy").click()
    guest.button("copied").wait_for()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith("第 1 行\n\n第 2 行\n\n")
    guest.button("continue").click()
    guest.says("第 1 行")
    guest.button("stop").click()
    guest.says(CHINESE("stopped"))

    guest.button("retry").click()
    page.wait_for_function(f"JSON.parse({KEPT}).rounds[0].versions[1]?.text.includes('第 3 行')")
    page.reload()  # the server has an empty session for it, as after a restart
    guest.says("2/2")
    guest.says(CHINESE("stopped"))
    guest.ask_and_wait("# 问题\n  **缩进** <b>")
    assert page.locator(".plain").last.inner_text() == "# 问题\n  **缩进** <b>"
    assert guest.messages.count() == 4
    guest.button("retry").click()
    guest.says("2/2")
    guest.button("earlier").click()
    guest.says("1/2")


def test_a_question_outlives_the_run_that_brought_it(browser: Any, server: Server) -> None:
    with Profile(browser) as profile:
        guest = Guest(profile.open(f"{server.address}/?slow"))
        guest.page.wait_for_function(f"{KEPT} !== null")
        guest.ask("早")
        guest.page.wait_for_timeout(500)  # its run has begun
        guest.page.get_by_role("slider").nth(2).press("ArrowRight")  # which ends that run for another
        guest.page.locator(".st-key-actions-0").wait_for()


def test_markdown_on_a_phone(browser: Any, server: Server) -> None:
    with Profile(browser, viewport={"width": 390, "height": 780}, color_scheme="dark") as profile:
        phone = Guest(profile.open(server.address))
        phone.ask_and_wait("markdown")
        answer = phone.answers.last
        shown = answer.inner_text()
        for part in (
            '<script>document.title = "taken"</script>',
            "onerror=",
            "$5 和 $10",
            "[链接](javascript:alert(1))",
        ):
            assert part in shown
        assert answer.locator("math").count() == 2
        assert answer.locator("math mfrac").count() == 1
        assert answer.locator("strong").inner_text() == "重点："
        assert answer.locator("code").inner_text() == "int main() { return 0 < 1; }"
        assert answer.locator(".code .k").count() == 2
        assert answer.locator("a").get_attribute("href") == "http://outside.test/2.png"
        assert phone.page.locator(".stMain :is(img, script, iframe)").count() == 0
        assert phone.page.title() == CHINESE("title")
        assert phone.page.evaluate("document.documentElement.scrollWidth") <= 390
        assert phone.page.evaluate("getComputedStyle(document.querySelector('.markdown')).colorScheme") == "dark"
        for part_of_page in (phone.box, phone.button("undo")):
            place = part_of_page.bounding_box()
            assert place["x"] >= 0
            assert place["x"] + place["width"] <= 390


@pytest.mark.parametrize(("host", "status"), [("localhost", 101), ("127.0.0.1", 101), ("evil.example", 403)])
def test_only_local_names_get_a_conversation(server: Server, host: str, status: int) -> None:
    server.wait()
    head = f"GET /_stcore/stream HTTP/1.1\r\nHost: {host}:{server.port}\r\nOrigin: http://{host}:{server.port}\r\n"
    upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    key = f"Sec-WebSocket-Key: {22 * 'A'}==\r\n"
    with socket.create_connection(("127.0.0.1", server.port), PATIENCE_S) as connection:
        connection.sendall(f"{head}{upgrade}{key}\r\n".encode())
        assert connection.recv(100).split()[1] == str(status).encode()


def test_two_at_once_wait_for_their_own_turns_and_leave(browser: Any, server: Server, guest: Guest) -> None:
    num_cancelled = server.log.count("cancelled")
    with Profile(browser, locale="en-US") as profile:
        english = texts_for("en-US")
        other = Guest(profile.open(server.address), english)
        other.ask("queued")
        other.says(english("queued", place=3))
        other.button("stop").click()
        other.says(english("nothing"))
        eventually(lambda: server.log.count("cancelled") == num_cancelled + 1)
        other.ask("endless")
        other.says("第 3 行")
        guest.ask_and_wait("甲的问题")
        assert "甲的问题" not in other.page.inner_text("body")
    eventually(lambda: server.log.count("cancelled") == num_cancelled + 2)  # nobody reads it any more


def test_a_server_that_comes_back(browser: Any, environment: dict[str, str], tmp_path: Path) -> None:
    """An open tab works on with the next server, and so does one that is opened anew."""
    server = Server(tmp_path / "server.log", environment)
    try:
        with Profile(browser) as profile:
            server.wait()
            guest = Guest(profile.open(server.address))
            guest.ask_and_wait("之前")
            server.stop()
            server.start()
            server.wait()
            guest.page.get_by_text(CHINESE("title")).first.wait_for()
            guest.ask_and_wait("之后")
            assert guest.answers.all_inner_texts() == ["之前", "之后"]
            guest.page.reload()
            guest.answers.nth(1).wait_for()
            assert guest.answers.all_inner_texts() == ["之前", "之后"]
    finally:
        server.stop()


def test_a_conversation_as_a_file(guest: Guest, tmp_path: Path) -> None:
    page = guest.page
    page.get_by_role("textbox", name=CHINESE("system")).fill("简短")
    guest.ask_and_wait("存下来")
    num = guest.messages.count()
    guest.button("save").click()
    with page.expect_download() as download:
        guest.button("json").click()
    saved = json.loads(download.value.path().read_text())
    assert saved["history"][-1] == ["存下来", "存下来"]
    assert saved["system"] == "简短"
    page.keyboard.press("Escape")

    bad, good = tmp_path / "bad.json", tmp_path / "good.json"
    bad.write_text('{"history": null}')
    good.write_text(json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}))
    page.locator("input[type=file]").set_input_files(bad)
    page.get_by_test_id("stAlert").wait_for()
    guest.messages.nth(num - 1).wait_for()
    guest.button("clear").click()
    guest.button("unclear").click()
    guest.messages.nth(num - 1).wait_for()
    opened = guest.answers.filter(has_text=re.compile(r"^\s*b\s*$"))
    page.locator("input[type=file]").set_input_files(good)
    opened.wait_for()
    guest.button("unopen").click()
    opened.wait_for(state="detached")
    assert guest.messages.count() == num
    page.locator("input[type=file]").set_input_files(good)
    opened.wait_for()
    page.evaluate("void (Storage.prototype.setItem = () => { throw new DOMException('', 'QuotaExceededError') })")
    guest.button("edit").click()
    page.get_by_role("textbox", name=CHINESE("edit")).fill("新的问题")
    page.get_by_role("textbox", name=CHINESE("edit")).press("Control+Enter")
    guest.says("新的问题")
    guest.says(CHINESE("storage_full"))
