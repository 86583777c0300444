"""The Gradio page in a real browser, as people use it."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.ui.browser import Profile, started_browser
from tests.ui.echo_pipeline import PAUSE, EchoPipeline
from tests.ui.gradio_servers import NEEDS_GRADIO, free_port, served, served_echo
from tests.ui.visitor import EVERYTHING, Person

pytestmark = [
    NEEDS_GRADIO,
    pytest.mark.xdist_group("browser"),
    # Gradio leaves sockets to the garbage collector.
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]

GREETING = "你好"
SHIFTS = """() => {
    let sum = 0;
    for (const entry of window.shifts.takeRecords()) sum += entry.value;
    return window.shifted + sum;
}"""
WATCH_SHIFTS = """
window.shifted = 0;
const add = (list) => list.getEntries().forEach((entry) => (window.shifted += entry.value));
window.shifts = new PerformanceObserver(add);
window.shifts.observe({type: "layout-shift", buffered: true});
"""
# Top and bottom of the parts of the page.
BOUNDS = """() => ["#main header", "#scroller", "#foot", "#question", "#model"].map((name) => {
    const { top, bottom } = document.querySelector(name).getBoundingClientRect();
    return [top, bottom];
})"""


@pytest.fixture(scope="module")
def demo(_clean_module_environment: None) -> Iterator[str]:
    """A page with the demo model."""
    with served() as address:
        yield address


@pytest.fixture(scope="module")
def pipeline() -> EchoPipeline:
    return EchoPipeline()


@pytest.fixture(scope="module")
def echo(pipeline: EchoPipeline, _clean_module_environment: None) -> Iterator[str]:
    """A page whose answers are the questions."""
    with served_echo(pipeline, free_port()) as address:
        yield address


@pytest.fixture(scope="module")
def browser(demo: str, echo: str) -> Iterator[Any]:
    """After the pages: Gradio does not start a server where Playwright runs its event loop."""
    with started_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def profile(browser: Any) -> Iterator[Profile]:
    with Profile(browser, permissions=["clipboard-read", "clipboard-write"]) as profile:
        yield profile


@pytest.fixture(scope="module")
def demo_page(profile: Profile, demo: str) -> Iterator[Person]:
    with Person(profile.open(demo)) as person:
        yield person


@pytest.fixture(scope="module")
def echo_page(profile: Profile, echo: str) -> Iterator[Person]:
    with Person(profile.open(echo)) as person:
        yield person


@pytest.fixture
def person(demo_page: Person) -> Person:
    """Somebody at the demo model, in a new conversation: opening a page takes long."""
    demo_page.look()
    demo_page.new()
    return demo_page


@pytest.fixture
def reader(echo_page: Person) -> Person:
    """Somebody who gets each question as its answer."""
    echo_page.look()
    echo_page.new()
    return echo_page


def test_conversations_survive(profile: Profile, person: Person, demo: str) -> None:
    """A conversation with figures survives a reload, with the draft; the list returns to it; rename, delete, undo."""
    assert "迷你演示模型" in person.page.locator("#demo-banner").inner_text()
    assert "你好" in person.ask_and_wait(GREETING)
    person.ask_and_wait("我叫小明")
    assert "小明" in person.ask_and_wait("我叫什么名字")
    assert re.fullmatch(r"[\d.]+ token/秒 · 上下文 \d+ / 1024", person.note())
    assert person.box.input_value() == ""
    person.box.fill("草稿")
    person.reload()
    person.until(lambda: person.answers.count() == 3)
    assert person.box.input_value() == "草稿"

    person.new()
    assert person.questions.count() == 0
    starter = person.page.locator("#starters button").first
    question = starter.inner_text()
    starter.click()
    assert "GLM-Tiny" in person.answer()
    assert person.titles.all_inner_texts()[:2] == [question, GREETING]

    with Person(profile.open(demo)) as other:
        assert other.questions.count() == 0
        assert other.titles.all_inner_texts()[:2] == [question, GREETING]
        other.titles.nth(1).click()
        other.until(lambda: other.answers.count() == 3)
        other.rename(GREETING, "问候")
        other.until(lambda: other.titles.nth(1).inner_text() == "问候")
        assert other.page.locator("#title").inner_text() == "问候"
        person.until(lambda: person.titles.nth(1).inner_text() == "问候")
        other.do_listed("delete", "问候")
        other.until(lambda: "问候" not in other.titles.all_inner_texts())
        assert other.questions.count() == 0
        assert "已删除“问候”" in other.notices.inner_text()
        other.undo()
        other.until(lambda: other.answers.count() == 3)
        assert "小明" in other.ask_and_wait("我叫什么名字")
    assert "小明" not in person.ask_and_wait("我叫什么名字")


def test_questions_stand_as_typed_and_are_copied_and_edited_as_such(reader: Person) -> None:
    typed = "# 一 &lt; <b>粗</b> **x** __init__\n    缩进 &amp; &#91;"
    reader.box.fill("一行")
    reader.box.press("Shift+Enter")
    assert reader.box.input_value() == "一行\n"
    reader.ask(typed)
    reader.answer()
    assert reader.bubbles.last.inner_text() == typed
    reader.do("copy", of="question")
    reader.until(lambda: reader.copied() == typed)
    reader.do("copy")
    reader.until(lambda: reader.copied() == typed)

    reader.do("edit", of="question")
    editor = reader.page.locator(".editor textarea")
    assert editor.input_value() == typed
    editor.press("Escape")
    assert editor.count() == 0
    assert reader.page.evaluate("document.activeElement.dataset.action") == "edit"
    reader.box.press("ArrowUp")
    reader.page.locator(".editor .primary").press("Escape")
    assert editor.count() == 0
    reader.box.press("ArrowUp")
    editor.fill("```cpp\nint a = b < c;\n```")
    editor.press("Enter")
    reader.until(lambda: "int a" in reader.bubbles.last.inner_text())
    reader.answer()
    reader.answers.last.locator("[data-action=copy_code]").click()
    reader.until(lambda: reader.copied() == "int a = b < c;")

    reader.do("take_back", of="question")
    reader.until(lambda: reader.questions.count() == 0)
    assert reader.box.input_value() == "```cpp\nint a = b < c;\n```"
    reader.undo()
    reader.until(lambda: reader.questions.count() == 1)
    assert reader.focused() == "question"
    reader.box.fill("")


def test_settings_are_those_that_the_fields_show(reader: Person, pipeline: EchoPipeline) -> None:
    """A file's are kept within bounds and to its conversation; what is changed applies to new ones, nothing else."""
    settings = {"temperature": 3, "top_k": 200, "top_p": 0.333, "repetition_penalty": 1.5}
    reader.open_file("a.json", json.dumps({"history": [["a", "b"]], "settings": settings, "system": "s"}))
    reader.until(lambda: reader.texts.all_inner_texts() == ["b"])
    assert reader.chosen("temperature", "top_k", "top_p", "system") == ["2", "100", "0.333", "s"]
    assert reader.ask_and_wait("c") == "c"
    assert pipeline.options == {**pipeline.defaults, **settings, "temperature": 2, "top_k": 100}
    reader.choose(seed="5")
    reader.open_file("b.json", '[["x", "y"]]')
    reader.until(lambda: reader.texts.all_inner_texts() == ["y"])
    assert reader.chosen("system", "seed") == ["s", "5"]
    reader.open_file("c.json", '{"history": [["z", "z"]], "system": ""}')
    reader.until(lambda: reader.texts.all_inner_texts() == ["z"])
    assert reader.chosen("system") == [""]
    reader.new()
    reader.ask_and_wait("d")
    assert pipeline.options == {**pipeline.defaults, "seed": 5}
    assert reader.page.evaluate("localStorage['chatglm:settings']") == '{"seed":5}'
    reader.choose(seed="")
    assert reader.page.evaluate("localStorage['chatglm:settings']") == "{}"


def test_what_is_changed_while_an_answer_is_awaited_stays(reader: Person, pipeline: EchoPipeline) -> None:
    question = f"{PAUSE}等"
    reader.ask(question)
    pipeline.go_on()
    assert reader.answer() == "等"
    reader.do("retry")
    reader.page.locator(".wait").wait_for()
    reader.choose(temperature="0.3")
    reader.rename(question, "改名")
    reader.stop()
    assert reader.answer() == "等"
    assert reader.chosen("temperature") == ["0.3"]
    assert reader.page.title() == "改名"
    reader.page.get_by_text("恢复默认值").click()


def test_the_conversation_fills_the_window(reader: Person) -> None:
    """At sizes of a laptop, a large screen and a phone; the question box is at the bottom and grows up to a bound."""
    model = reader.page.locator("#model")
    reader.ask_and_wait("x")
    for width, height in ((1920, 1080), (390, 844), (1280, 800)):
        reader.page.set_viewport_size({"width": width, "height": height})
        heights = []
        for text in ("", "行\n行", "行\n" * 100):
            reader.box.fill(text)
            (_, header), (top, bottom), foot, box, _ = reader.page.evaluate(BOUNDS)
            assert [top, bottom, foot[1]] == pytest.approx([header, foot[0], height])
            assert 0 < height - box[1] < 40
            heights.append(box[1] - box[0])
        assert heights[0] < heights[1] < heights[2] == pytest.approx(0.4 * height, abs=0.1)
        if not model.is_visible():
            reader.page.locator("#menu").click()
        reader.choose()  # opens the settings
        assert reader.page.evaluate(BOUNDS)[-1][1] < height
        assert model.inner_text() == "echo · fp32 · cpu · 上下文 1024"
        assert reader.page.evaluate("document.documentElement.scrollWidth") <= width
    reader.box.fill("")


def test_code_and_formulas_show_while_they_stream(reader: Person, pipeline: EchoPipeline) -> None:
    """Whatever a fence is called; nothing that is no formula becomes one; no picture, no script."""
    names = ("cpp", "C++", "constructor", "__proto__", "no such")
    code = "".join(f"```{name}\nlet x{number} = 1;\n```\n" for number, name in enumerate(names))
    reader.ask(
        f"{code}\n```toString\nhalf = 1\n{PAUSE}```\n$5 和 $10，\\(a<b\\)，\\[\\frac12\\] <img src=x> ![p](http://a/b)"
    )
    blocks = reader.texts.last.locator(".code code")
    reader.until(lambda: blocks.count() == 6)
    assert "half = 1" in blocks.last.inner_text()
    for number in range(5):
        assert blocks.nth(number).inner_text().strip() == f"let x{number} = 1;"
    pipeline.go_on()
    text = reader.answer()
    assert blocks.all_inner_texts()[4].strip() == "let x4 = 1;"
    assert "$5 和 $10" in text
    assert reader.texts.last.locator("math").count() == 2
    assert reader.page.locator("#rounds :is(img, script)").count() == 0


@pytest.mark.slow
def test_reading_upwards_while_an_answer_grows(reader: Person, pipeline: EchoPipeline) -> None:
    """The page follows at its end only; wheel, keys and the scroll bar are left alone; a button leads back."""
    part = "\n\n".join(f"第 {number} 段" for number in range(40))
    reader.ask(f"{PAUSE}\n\n".join([part] * 6) + "\n\n完")
    top = lambda: reader.scroller.evaluate("e => e.scrollTop")  # noqa: E731
    at_end = lambda: reader.distance() < 3  # noqa: E731
    to_end = reader.page.locator("#to-end")

    def grow() -> None:
        height = reader.scroller.evaluate("e => e.scrollHeight")
        pipeline.go_on()
        reader.until(lambda: reader.scroller.evaluate("e => e.scrollHeight") > height + 1000)

    reader.until(lambda: reader.texts.count() and at_end() and top() > 500)
    grow()
    reader.until(at_end)
    assert to_end.is_hidden()
    reader.scroller.hover()
    reader.page.mouse.wheel(0, -300)
    reader.until(lambda: not at_end())
    reader.page.wait_for_function("() => !document.querySelector('#to-end').hidden")
    before = top()
    reader.texts.last.evaluate("e => getSelection().selectAllChildren(e.querySelector('p'))")
    grow()
    assert abs(top() - before) < 3
    assert reader.page.evaluate("getSelection().toString()").strip() == "第 0 段"
    reader.scroller.evaluate("e => e.scrollTo(0, 40)")
    grow()
    assert top() == 40
    reader.scroller.focus()
    reader.page.keyboard.press("Home")
    reader.until(lambda: top() == 0)
    grow()
    assert top() == 0
    to_end.click()
    reader.until(at_end)
    grow()
    reader.until(at_end)
    assert "完" in reader.answer()
    reader.until(at_end)


def test_saved_files_open_again(person: Person, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    person.ask_and_wait("我叫小明")
    given = person.chosen("system", "temperature")
    person.choose(system="你是助手", temperature="0.5")
    saved = {}
    for form, suffix in (("json", ".json"), ("markdown", ".md"), ("html", ".html")):
        person.page.locator("#save summary").click()
        with person.page.expect_download() as download:
            person.page.locator(f"[data-form={form}]").click()
        assert download.value.suggested_filename.endswith(suffix)
        saved[form] = tmp_path / f"saved{suffix}"
        download.value.save_as(saved[form])
        assert person.page.evaluate("document.activeElement.parentElement.id") == "save"
    content = json.loads(saved["json"].read_text(encoding="utf-8"))
    assert (content["system"], content["settings"]["temperature"]) == ("你是助手", 0.5)
    assert [question for question, _ in content["history"]] == ["我叫小明"]
    for form in ("markdown", "html"):
        assert content["history"][0][1] in saved[form].read_text(encoding="utf-8")
    person.page.get_by_text("恢复默认值").click()
    assert person.chosen("system", "temperature") == given

    person.open_file("saved.json", saved["json"].read_bytes())
    person.page.get_by_text("已打开 1 轮对话").wait_for()
    person.until(lambda: person.questions.count() == 1)
    assert person.chosen("system", "temperature") == ["你是助手", "0.5"]
    person.choose(system="")
    assert "小明" in person.ask_and_wait("我叫什么名字")
    stop = '{"history": [], "settings": {"stop": 5}}'
    for number, bad in enumerate(('{"history": null}', '[["\\ud800", "x"]]', "{", b"\xff\xfe{}", stop)):
        person.open_file(f"bad{number}.json", bad)
        person.page.locator(".notice.alert").wait_for()
        assert person.questions.count() == 2
        person.page.locator(".notice.alert [data-action=close]").click()
    for name, told in (("read_transcript", "服务器内部出错"), ("_told", "服务器没有处理这次请求")):
        monkeypatch.setattr(f"chatglm.ui.gradio.gradio_page.{name}", None)  # so that calls of it fail
        person.open_file("good.json", "[]")
        person.notices.get_by_text(told).wait_for()
    monkeypatch.undo()
    person.open_file(
        "openai.json",
        json.dumps({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]}),
    )
    person.until(lambda: person.texts.all_inner_texts() == ["yo"])
    assert person.page.title() == "openai"


def test_full_storage_is_told_and_loses_nothing(reader: Person) -> None:
    reader.page.evaluate(
        "() => { for (let n = 1 << 22; n; n >>= 1) try { localStorage['fill' + n] = 'x'.repeat(n); } catch {} }"
    )
    reader.ask_and_wait("满了")
    assert "存储空间已满" in reader.notices.inner_text()
    reader.page.evaluate(
        "() => Object.keys(localStorage).filter((k) => k.startsWith('fill')).forEach((k) => delete localStorage[k])"
    )
    reader.ask_and_wait("又有地方了")
    reader.reload()
    reader.until(lambda: reader.questions.count() == 2)


@pytest.mark.slow
def test_english_on_a_phone_in_the_dark(browser: Any, demo: str, echo: str, pipeline: EchoPipeline) -> None:
    """Nothing sticks out or jumps, the side bar is a drawer, the theme is remembered and there before the page is.

    A finger scrolls while an answer grows.
    """
    options = {"locale": "en-US", "viewport": {"width": 375, "height": 740}, "color_scheme": "dark"}
    with Profile(browser, **options, is_mobile=True, has_touch=True) as phone:
        page = phone.open("about:blank")
        page.add_init_script(WATCH_SHIFTS)
        page.goto(demo)
        person = Person(page)
        assert "toy model" in page.locator("#demo-banner").inner_text()
        person.box.press("Enter")
        assert person.box.input_value() == "\n"
        assert "GLM-Tiny" in person.ask_and_wait("who are you")
        assert "tokens/s" in person.note()
        assert page.evaluate("document.documentElement.scrollWidth") <= 375
        assert not re.search("[\u4e00-\u9fff]", page.locator("#page").inner_text())
        background = "getComputedStyle(document.querySelector('#page')).backgroundColor"
        dark = page.evaluate(background)
        side = page.locator("#side")
        assert side.is_hidden()
        page.locator("#menu").tap()
        page.locator("#theme").select_option("light")
        light = page.evaluate(background)
        assert light != dark
        page.keyboard.press("Escape")
        person.until(side.is_hidden)
        assert person.focused() == "menu"
        page.locator("#menu").tap()
        person.titles.first.tap()
        person.until(side.is_hidden)
        assert person.focused() == "scroller"
        page.reload(wait_until="commit")
        page.wait_for_function("() => document.body")
        assert page.evaluate("document.documentElement.style.colorScheme") == "light"
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == light
        person.until(lambda: person.answers.count() == 1)
        assert page.evaluate(background) == light
        assert page.evaluate(SHIFTS) < 0.02

        page.goto(echo)
        reader = Person(page)
        reader.ask(f"{PAUSE}\n\n".join(["\n\n".join(["line"] * 40)] * 2))
        reader.until(lambda: reader.distance() == 0 and reader.texts.count())
        reader.swipe_down()
        reader.until(lambda: reader.distance() > 100)
        before = reader.distance()
        pipeline.go_on()
        reader.until(lambda: reader.distance() > before + 1000)
        page.locator("#to-end").tap()
        reader.until(lambda: reader.distance() == 0)


def test_nothing_is_hard_to_reach_for_anybody(profile: Profile, echo: str) -> None:
    with Person(profile.open(echo)) as person:
        person.ask_and_wait(EVERYTHING)
        person.choose()
        person.page.locator("#save summary").click()
        assert person.obstacles() == []


def test_pages_of_other_sites_uploads_and_monitoring_are_refused(demo: str) -> None:
    for headers in ({"host": "evil.example"}, {"origin": "http://evil.example"}, {"sec-fetch-site": "cross-site"}):
        assert httpx.get(demo, headers=headers).status_code == 403
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert httpx.get(demo, headers=link).status_code == 200
    for path in ("upload", "gradio_api/upload", "gradio_api/upload/"):
        assert httpx.post(f"{demo}/{path}", files={"files": b"1"}).status_code == 403
    join = f"{demo}/gradio_api/queue/join"
    assert httpx.post(join, content=iter([b"{}"])).status_code == 411
    with socket.create_connection(("127.0.0.1", int(demo.rsplit(":", 1)[1])), 30) as client:
        client.sendall(b"POST /gradio_api/queue/join HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999999999\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 413 ")
    assert httpx.get(f"{demo}/monitoring").status_code >= 400
