"""Visitors who queue at the Gradio page, and servers that come and go."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.ui.browser import Profile, started_browser
from tests.ui.echo_pipeline import PAUSE, EchoPipeline
from tests.ui.gradio_servers import NEEDS_GRADIO, free_port, served, served_echo, slow_steps
from tests.ui.visitor import Person

pytestmark = [
    NEEDS_GRADIO,
    pytest.mark.xdist_group("browser"),
    # Gradio leaves sockets to the garbage collector.
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def endless(tiny_folder: Path, _clean_module_environment: None) -> Iterator[str]:
    """A page with a model whose answers are long nonsense; one is answered, one waits."""
    flags = ("--max-running", "1", "--max-waiting", "1", "--top-p", "0.855")
    with served("--model", str(tiny_folder), *flags) as address:
        yield address


@pytest.fixture(scope="module")
def browser(endless: str) -> Iterator[Any]:
    """After the page: Gradio does not start a server where Playwright runs its event loop."""
    with started_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def profile(browser: Any) -> Iterator[Profile]:
    with Profile(browser) as profile:
        yield profile


@pytest.mark.slow
def test_versions_of_an_answer_and_going_on_with_one(profile: Profile, endless: str) -> None:
    """The length ends an answer; the seed gives it again, a retry another; arrows lead back; it is continued."""
    with Person(profile.open(endless)) as person:
        assert person.page.locator("#max_length").get_attribute("max") == "2048"
        assert person.chosen("top_p") == ["0.855"]
        person.choose(max_length="24", temperature="0.9", seed="7")
        first = person.ask_and_wait("hello")
        assert "已达到长度上限" in person.note()
        person.new()
        assert person.ask_and_wait("hello") == first
        person.do("retry")
        person.page.locator(".versions", has_text="2/2").wait_for()
        assert person.answer() != first
        person.do("earlier")
        person.page.locator(".versions", has_text="1/2").wait_for()
        assert person.answer() == first
        person.do("continue")
        person.until(lambda: len(person.texts.last.inner_text()) > len(first))
        person.stop()
        longer = person.answer()
        assert longer.startswith(first)
        person.reload()
        person.page.locator(".versions", has_text="1/2").wait_for()
        assert person.answer() == longer
        person.choose(seed="", max_length="48")
        for number in range(3):
            person.ask_and_wait(f"question {number} of many")
        assert "已不在模型的视野内" in person.note()
        person.do("edit", 0, of="question")
        person.page.locator(".editor textarea").fill("other")
        person.page.locator(".editor textarea").press("Enter")
        person.until(lambda: person.questions.count() == 1)
        person.answer()
        person.undo()
        person.until(lambda: person.questions.count() == 4)
        person.choose(seed="-1")
        person.ask("not asked")
        assert person.page.evaluate("document.activeElement.id") == "seed"
        assert (person.box.input_value(), person.questions.count()) == ("not asked", 4)


def wait_in_queue(person: Person) -> None:
    """Try again until there is room: the engine drops a cancelled request with its next step."""
    waiting = person.page.get_by_text("排队中，第 1 位")
    retry = person.page.locator("[data-action=retry]:visible")
    person.look()
    person.until(lambda: waiting.count() or (retry.count() and person.do("retry")))


@pytest.mark.slow
def test_a_queue_of_visitors(profile: Profile, endless: str) -> None:
    """One is answered, one waits and sees the place, the next is refused; who stops or leaves makes room."""
    with (
        slow_steps(),
        Person(profile.open(endless)) as first,
        Person(profile.open(endless)) as second,
        Person(profile.open(endless)) as third,
    ):
        for person in (third, second, first):
            person.look()
            person.choose(max_length="2048")
        first.ask("first")
        first.until(lambda: first.texts.count() and len(first.texts.last.inner_text()) > 5)
        second.ask("me too")
        second.page.get_by_text("排队中，第 1 位").wait_for()
        assert second.bubbles.inner_text() == "me too"
        third.ask("and me")
        error = third.page.locator("article.answer .error")
        assert error.inner_text() == "已有 1 个问题正在回答，1 个在排队，暂时不再接收。请稍后重试。"

        second.look()
        second.new()  # its question leaves the queue
        assert "me too" not in second.titles.all_inner_texts()
        wait_in_queue(third)
        third.stop()
        third.until(lambda: "已停止" in third.note())
        second.ask("once more")
        wait_in_queue(second)
        first.look()
        first.box.press("Escape")
        first.until(lambda: "已停止" in first.note())
        kept = first.texts.last.inner_text()
        second.look()
        second.until(second.texts.count)
        first.reload()
        assert first.answer() == kept

        second.do_listed("delete", "once more")  # in the middle of its answer
        first.ask("again")
        first.until(lambda: first.texts.count() == 2)
        second.look()
        second.undo()
        second.until(lambda: second.texts.count() and "已停止" in second.note())

        first.look()
        first.new()  # the answer goes on
        first.titles.get_by_text("first", exact=True).click()
        first.until(lambda: first.texts.count() == 2 and first.page.locator("#page.running").count())
        first.new()
        first.ask("elsewhere")
        first.page.get_by_text("已停止“first”中的回答").wait_for()
        first.until(first.texts.count)
        first.page.close()  # in the middle of its answer
        third.ask("at last")
        third.until(third.texts.count)
        third.titles.get_by_text("first", exact=True).click()
        third.until(lambda: third.texts.count() == 2 and "已停止" in third.note())


@pytest.mark.slow
def test_a_server_that_goes_and_comes_back(browser: Any) -> None:
    """An open page works on with the next server; without one it says so, and comes back with all there was."""
    port, pipeline = free_port(), EchoPipeline()
    with Profile(browser) as profile:
        with served_echo(pipeline, port) as address:
            person = Person(profile.open(address))
            person.ask_and_wait("一")
        with served_echo(pipeline, port):
            person.ask_and_wait("二")
            person.ask(f"三{PAUSE}")
            person.until(lambda: person.texts.count() == 3)
        person.until(lambda: not person.page.locator("#page.running").count())
        person.ask("四")
        person.page.get_by_text("服务器没有响应").first.wait_for()
        person.box.fill("草稿")
        with served_echo(pipeline, port):
            person.page.locator(".notice").wait_for(state="detached")
            person.until(lambda: person.texts.all_inner_texts()[:3] == ["一", "二", "三"])
            assert "已停止" in person.answers.nth(2).inner_text()
            assert person.box.input_value() == "草稿"
            person.ask_and_wait("五")
