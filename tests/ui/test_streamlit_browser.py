"""The Streamlit page in Chromium, with a model whose answers hardly ever end."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("streamlit", reason="the page needs Streamlit: pip install streamlit")

from chatglm.ui.notes import STOPPED
from chatglm.ui.streamlit.streamlit_page import CLEAR, STOP, TITLE
from tests import forking
from tests.serving.servers import eventually
from tests.ui.browser import Profile, started_browser

pytestmark = pytest.mark.xdist_group("streamlit")

ROOT = Path(__file__).parents[2]
SCRIPT = str(ROOT / "web_demo2.py")
PATIENCE_S = 60

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
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "streamlit", "run", SCRIPT, "--server.port", str(port)]
    log = tmp_path_factory.mktemp("streamlit") / "server.log"
    with log.open("wb") as output:
        server = forking.Popen(
            [*command, "--", "--model", str(tiny_folder), "--temperature", "0"],
            env=environment, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        eventually(lambda: server.poll() is not None or can_connect(port))
        assert server.poll() is None, log.read_text()
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        try:
            server.wait(PATIENCE_S)
        finally:
            server.kill()
    assert "Traceback" not in log.read_text()


def can_connect(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Guest:
    """Somebody at the page."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.box = page.get_by_test_id("stChatInputTextArea")
        self.box.wait_for()
        self.messages = page.get_by_test_id("stChatMessage")
        self.stop = page.get_by_role("button", name=STOP)
        self.clear = page.get_by_role("button", name=CLEAR)

    def ask(self, text: str) -> None:
        self.box.fill(text)
        self.box.press("Enter")
        self.stop.wait_for()

    def wait_for_text(self, length: int = 1) -> None:
        """Until the last message has so many characters."""
        eventually(lambda: self.messages.count() and len(self.messages.last.inner_text()) >= length)

    def end_answer(self) -> None:
        """Press stop, unless the answer has just reached its length limit."""
        self.page.evaluate("document.querySelector('.st-key-stop button')?.click()")
        self.clear.wait_for()


@pytest.fixture(scope="module")
def guest(browser: Any, address: str) -> Iterator[Guest]:
    """With a wide screen."""
    with Profile(browser) as profile:
        yield Guest(profile.open(address))


@pytest.fixture(scope="module")
def phone(browser: Any, address: str) -> Iterator[Guest]:
    """At the same time, on a phone."""
    with Profile(browser, viewport={"width": 390, "height": 780}) as profile:
        yield Guest(profile.open(address))


def test_streaming_and_stop(guest: Guest) -> None:
    assert guest.page.title() == TITLE
    guest.page.evaluate(WATCH)
    guest.ask("长")
    guest.wait_for_text(100)
    top_p = guest.page.get_by_role("slider").nth(1)
    top_p.press("ArrowRight")  # Streamlit runs the page anew for it, and the answer goes on
    guest.wait_for_text(len(guest.messages.last.inner_text()) + 20)
    guest.stop.click()
    guest.clear.wait_for()
    assert STOPPED in guest.messages.last.inner_text()
    assert "0.61" in guest.page.get_by_test_id("stSlider").nth(1).inner_text()
    growing = {len(seen) for seen in guest.page.evaluate("[...window.seen]") if "AI正在回复" in seen}
    assert len(growing) >= 3


def test_hostile_text_on_a_phone(phone: Guest) -> None:
    phone.ask(HOSTILE)
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
    guest.ask("甲的问题")
    phone.ask("乙的问题")
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
    settings = forking.run(
        [sys.executable, "-m", "streamlit", "config", "show"],
        capture_output=True, text=True, env=environment, cwd=ROOT, timeout=PATIENCE_S, check=True,
    ).stdout  # fmt: skip
    for line in ("gatherUsageStats = false", 'address = "127.0.0.1"', "headless = true", "fastReruns = false"):
        assert re.search(f"^{re.escape(line)}$", settings, re.MULTILINE), line
