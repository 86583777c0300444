"""Every state of the Gradio page is for everybody."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.ui.browser import Profile, started_browser
from tests.ui.echo_pipeline import PAUSE, EchoPipeline
from tests.ui.gradio_servers import NEEDS_GRADIO, free_port, served_echo
from tests.ui.visitor import EVERYTHING, Person

pytestmark = [
    NEEDS_GRADIO,
    pytest.mark.slow,
    pytest.mark.xdist_group("browser"),
    # Gradio leaves sockets to the garbage collector.
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def pipeline() -> EchoPipeline:
    return EchoPipeline()


@pytest.fixture(scope="module")
def echo(pipeline: EchoPipeline, _clean_module_environment: None) -> Iterator[str]:
    with served_echo(pipeline, free_port()) as address:
        yield address


@pytest.fixture(scope="module")
def browser(echo: str) -> Iterator[Any]:
    """After the page: Gradio does not start a server where Playwright runs its event loop."""
    with started_browser() as browser:
        yield browser


@pytest.mark.parametrize("locale", ["zh-CN", "en-US"])
def test_nothing_is_hard_to_reach_in_any_state(browser: Any, echo: str, pipeline: EchoPipeline, locale: str) -> None:
    """The start page; an answer that waits, runs, is there; an open editor, notices, settings, a drawer on a phone."""
    with Profile(browser, locale=locale) as profile:
        person = Person(profile.open(echo))
        page = person.page
        assert person.obstacles() == []
        person.ask(f"{PAUSE}# x\n{PAUSE}{EVERYTHING}")
        page.locator(".wait").wait_for()
        assert person.obstacles() == []
        pipeline.go_on()
        person.until(person.texts.count)
        assert person.obstacles() == []
        pipeline.go_on()
        person.answer()
        person.do("edit", of="question")
        person.choose()
        assert person.obstacles() == []
        page.locator(".editor textarea").press("Escape")
        person.open_file("bad.json", "{")
        page.locator(".notice.alert").wait_for()
        person.do("take_back", of="question")
        page.locator(".notice .undo").wait_for()
        assert person.obstacles() == []
        page.locator(".notice .undo").click()
        person.until(person.texts.count)
        page.set_viewport_size({"width": 390, "height": 844})
        page.locator("#menu").click()
        assert person.obstacles() == []
