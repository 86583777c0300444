"""The Gradio page's answers to any request, and a conversation as HTML, without a browser."""

from __future__ import annotations

import socket
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from chatglm.ui.gradio.conversation_html import pending_html, round_html
from chatglm.ui.gradio.gradio_app import main
from chatglm.ui.gradio.page_texts import STARTERS, TEXTS
from chatglm.ui.rounds import Reply, Round
from tests.ui.echo_pipeline import PAUSE, EchoPipeline
from tests.ui.gradio_servers import NEEDS_GRADIO

pytestmark = [NEEDS_GRADIO, pytest.mark.xdist_group("browser")]

DONE = Reply("one\ntwo", "stop", 10, 21, first_s=1.0, latest_s=3.0)


def new_page() -> Any:
    from chatglm.ui.gradio.gradio_page import GradioPage

    return GradioPage(EchoPipeline(), {})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def page() -> Any:
    return new_page()


def conversation(*rounds: Round) -> dict[str, Any]:
    return {"rounds": [round_.to_json() for round_ in rounds], "settings": {}, "system": ""}


def answers(page: Any, **request: Any) -> list[dict[str, Any]]:
    event: Any = SimpleNamespace(_data={"key": "k", "language": "en", **request})
    return list(page.answer(event))


def test_the_answer_grows_and_ends_as_a_round(page: Any) -> None:
    messages = answers(page, action="ask", question="hello", conversation=conversation(Round("a", (DONE,))))
    assert [message["running"] for message in messages] == [True] * (len(messages) - 1) + [False]
    assert {message["index"] for message in messages} == {1}
    (version,) = messages[-1]["round"]["versions"]
    assert (version["text"], version["finish_reason"]) == ("hello", "stop")


def test_closing_the_page_ends_answers_and_keeps_their_text() -> None:
    page = new_page()
    request = {"key": "k", "action": "ask", "question": f"half{PAUSE}whole", "conversation": conversation()}
    messages = page.answer(SimpleNamespace(_data=request))
    assert next(message for message in messages if "half" in message["html"])["running"]
    closing = threading.Thread(target=page.close)
    closing.start()
    (version,) = list(messages)[-1]["round"]["versions"]
    assert (version["text"], version["finish_reason"]) == ("half", "cancelled")
    closing.join()


@pytest.mark.parametrize("language", ["zh", "en"])
@pytest.mark.parametrize(
    "request_",
    [
        None,
        [],
        {},
        {"key": 1, "action": "ask"},
        {"key": "k", "action": "ask", "question": "x", "conversation": 5},
        {"key": "k", "action": "ask", "question": "x", "conversation": {"rounds": None}},
        {"key": "k", "action": "ask", "question": "x", "conversation": {"rounds": [{"question": 1}]}},
        {"key": "k", "action": "ask", "question": "x", "conversation": {"rounds": [], "settings": {"top_p": "x"}}},
        {"key": "k", "action": "ask", "question": "x", "conversation": {"rounds": [], "system": ["x"]}},
        {"key": "k", "action": "ask", "question": " ", "conversation": {"rounds": []}},
        {"key": "k", "action": "ask", "question": "\ud800", "conversation": {"rounds": []}},
        {"key": "k", "action": "ask", "question": "x" * 20_000_000, "conversation": {"rounds": []}},
        {"key": "k", "action": "retry", "index": 0, "conversation": {"rounds": []}},
        {"key": "k", "action": "retry", "index": True, "conversation": {"rounds": []}},
        {"key": "k", "action": "no such", "index": 0, "conversation": conversation(Round("a", (DONE,)))},
    ],
)
def test_a_request_in_any_form_gets_a_message(page: Any, request_: Any, language: str) -> None:
    request = {**request_, "language": language} if isinstance(request_, dict) else request_
    (message,) = page.answer(SimpleNamespace(_data=request))  # type: ignore[arg-type]
    assert message["error"]
    assert not message["running"]


def test_calls_in_any_form_get_a_message(page: Any) -> None:
    served: Any = next(block for block in page.blocks.blocks.values() if hasattr(block, "show"))
    for bad in (None, [], {"conversation": {"rounds": 1}}, {"conversation": {"rounds": []}, "form": "exe", "file": ""}):
        for name in ("save", "open"):
            assert getattr(served, name)(bad)["error"]
        served.stop(bad)
    assert served.open({"file": '{"messages": [{"role": "user", "content": "a"}]}'})["rounds"] == []
    assert served.show({"conversation": conversation()}) == {"html": ""}
    for num_tokens, can_go_on in ((1023, True), (1024, False)):
        cut = conversation(Round("a", (Reply("x" * num_tokens, "length"),)))
        assert ('data-action="continue"' in served.show({"conversation": cut})["html"]) == can_go_on
        messages = answers(page, action="continue", index=0, conversation=cut)
        assert (messages[-1].get("error") == "") == can_go_on
    assert messages == [{"key": "k", "running": False, "error": "The context is full: this answer cannot go on."}]


def test_a_fault_of_the_server_is_told_and_logged(
    page: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The reader gets the error of the page's language, the terminal the rest; the answer ends."""

    def fail(*arguments: object) -> None:
        raise TypeError("secret")

    served: Any = next(block for block in page.blocks.blocks.values() if hasattr(block, "show"))
    told = "Internal error; the server's terminal says more."
    for name in ("pending_html", "transcript_of"):
        monkeypatch.setattr(f"chatglm.ui.gradio.gradio_page.{name}", fail)
        (message,) = answers(page, action="ask", question="x", conversation=conversation())
        assert (message["running"], message["error"]) == (False, told)
        assert "TypeError: secret" in capsys.readouterr().err
    assert served.show({"conversation": conversation()}) == {"error": told}
    assert "TypeError: secret" in capsys.readouterr().err


def test_a_finished_round() -> None:
    """Questions are text, answers Markdown; each has its buttons, named in the page's language."""
    html = round_html(Round("# <b>", (DONE,)), 3, "en", 1024, is_full=False)
    assert "# &lt;b&gt;" in html
    assert "10.0 tokens/s · context 31 / 1024" in html
    assert 'data-round="3"' in html
    for name in ("Copy", "Edit", "Take back", "Try again"):
        assert f'aria-label="{name}"' in html
    assert "Continue" not in html
    assert "versions" not in html


def test_what_can_be_done_depends_on_the_answer() -> None:
    cut, failed = Reply("text", "length"), Reply("", "error", error="<broken>")
    html = round_html(Round("q", (cut,)), 0, "zh", 1024, is_full=False)
    assert 'data-action="continue"' in html
    assert "已达到长度上限" in html
    html = round_html(Round("q", (cut,)), 0, "zh", 1024, is_full=True)
    assert 'data-action="continue"' not in html
    assert "上下文已满，无法继续" in html
    html = round_html(Round("q", (DONE, failed), selected=1), 0, "zh", 1024, is_full=False)
    assert "2/2" in html
    assert "&lt;broken&gt;" in html
    assert 'data-action="retry"' in html
    assert 'data-version="0"' in html
    html = round_html(Round("q", (Reply("```cpp\nx\n```", "stop"),)), 0, "zh", 1024, is_full=False)
    assert html.count('data-action="copy_code"') == 1


def test_an_answer_that_waits() -> None:
    assert "排队中，第 2 位" in pending_html("q", Reply(), 2, 0, "zh", 1024)
    assert "thinking" in pending_html("q", Reply(), 0, 0, "en", 1024)
    assert "context 7 / 1024" in pending_html("q", Reply("x", None, 6, 1), 0, 0, "en", 1024)


def test_both_languages_have_every_text() -> None:
    assert TEXTS["zh"].keys() == TEXTS["en"].keys()
    assert len(STARTERS["zh"]) == len(STARTERS["en"])


def test_a_port_in_use(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["--port", str(port)]) == 1
    assert capsys.readouterr().err == f"Port {port} on 127.0.0.1 is in use. Give another one with --port.\n"
