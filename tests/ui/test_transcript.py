"""A conversation as Markdown, as a web page, and as JSON that is read again."""

from __future__ import annotations

import json
from html import escape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatglm.errors import ChatGLMError
from chatglm.ui.markdown import STYLE
from chatglm.ui.rounds import FINISH_REASONS, Reply, Round
from chatglm.ui.transcript import Transcript, finished_rounds, read_transcript


def test_the_page_shows_answers_as_markdown_and_the_rest_as_typed() -> None:
    pytest.importorskip("markdown_it")
    question = "<script>alert(1)</script> ![x](http://example.com/x.png)\n  # **a**"
    answer = "```python\nif a < b:\n\n    pass\n```\n\n**好** $\\frac{a}{b}<1$"
    page = Transcript("chatglm-6b <1>", "简短 **b**", finished_rounds([(question, answer)])).html()
    assert escape(question) in page
    assert "简短 **b**" in page
    for shown in ("<mfrac>", "a &lt; b:", "<strong>好</strong>", "chatglm-6b &lt;1&gt;", "default-src 'none'"):
        assert shown in page
    assert STYLE in page
    for tag in ("<script", "<img"):
        assert tag not in page


def test_markdown_and_json() -> None:
    rounds = [*finished_rounds([("问", "答\n\n二")]), Round("x", (Reply(error="NaN", finish_reason="error"),))]
    transcript = Transcript("m", "s", rounds, {"top_p": 0.5})
    written = json.loads(transcript.json())
    assert [written[name] for name in ("model", "system", "settings")] == ["m", "s", {"top_p": 0.5}]
    assert written["history"] == [["问", "答\n\n二"]]
    assert transcript.markdown().endswith("**系统指令：**\n\ns\n\n**用户：**\n\n问\n\n**ChatGLM-6B：**\n\n答\n\n二\n")


REPLIES = st.builds(
    Reply,
    st.text(),
    st.sampled_from(FINISH_REASONS),
    st.integers(0, 99),
    st.integers(0, 99),
    st.integers(0, 9),
    st.sampled_from(["", "NaN"]),
    st.floats(0, 9),
    st.floats(0, 9),
)


@st.composite
def rounds_of_answers(draw: st.DrawFn) -> Round:
    versions = draw(st.lists(REPLIES, min_size=1, max_size=3))
    return Round(draw(st.text()), tuple(versions), draw(st.integers(0, len(versions) - 1)))


@given(st.lists(rounds_of_answers(), max_size=3), st.none() | st.text(min_size=1))
def test_what_is_written_is_read(rounds: list[Round], system: str | None) -> None:
    transcript = Transcript("demo", system, rounds, {"temperature": 0.5, "seed": 3})
    assert read_transcript(transcript.json().encode()) == transcript


def test_forms_of_other_programs() -> None:
    messages = [
        {"role": "system", "content": "简短"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}]},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "not answered"},
    ]
    expected = Transcript("", "简短", finished_rounds([("a", "b")]))
    for content in (messages, {"messages": messages}):
        assert read_transcript(json.dumps(content).encode()) == expected
    pairs = [["q", "r"]]
    for old in (pairs, {"history": pairs, "model": "m"}, {"model": "m", "system": None, "history": pairs}):
        assert read_transcript(json.dumps(old).encode()).history == [("q", "r")]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"[",
        b"1",
        b"{}",
        b'{"history": 1}',
        b'{"history": null}',
        b'[["a"]]',
        b'[["a", 1]]',
        b"[" * 100_000,
        b'{"history": [["\\ud800", "b"]]}',
        b'{"history": [["a", "b"]], "system": 3}',
        b'{"history": [["a", "b"]], "settings": {"top_p": 7}}',
        b'{"history": [["a", "b"]], "settings": {"stop": 5}}',
        b'{"history": [["a", "b"]], "settings": {"seed": 9007199254740992}}',
        b'{"history": [["a", "b"]], "settings": []}',
        b'{"rounds": [{"question": "a", "versions": [], "selected": 0}]}',
        b'{"rounds": [{"question": "a", "versions": [{"text": "b", "finish_reason": {}}], "selected": 0}]}',
        b'{"rounds": [{"question": "a", "versions": [{"text": "b", "finish_reason": "stop", "first_s": "x"}],'
        b' "selected": 0}]}',
        b'{"messages": [{"role": "user"}]}',
        b'{"messages": [{"role": ["user"], "content": "a"}]}',
    ],
)
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(ChatGLMError, match=r"JSON|conversation"):
        read_transcript(data)
