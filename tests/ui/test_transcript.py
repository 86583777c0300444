"""A conversation as Markdown, as a web page, and as JSON that is read again."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatglm.errors import ChatGLMError
from chatglm.ui.transcript import Transcript, read_json

ROUNDS = st.lists(st.tuples(st.text(), st.text()), max_size=4)


def test_the_page_shows_formulas_code_and_tags_as_text() -> None:
    pytest.importorskip("mdtex2html")
    question = "<script>alert(1)</script> ![x](http://example.com/x.png) $\\frac{a}{b}<1$"
    answer = "```python\nif a < b:\n\n    pass\n```\n\n**好**"
    page = Transcript("chatglm-6b <1>", "简短", [(question, answer)]).html()
    assert "<script" not in page
    assert "<img" not in page
    assert "<math" in page
    assert "<mfrac>" in page
    assert "if a &lt; b:" in page
    assert "<strong>好</strong>" in page
    assert "chatglm-6b &lt;1&gt;" in page
    assert "default-src 'none'" in page
    assert "简短" in page


def test_markdown_and_json() -> None:
    transcript = Transcript("m", "s", [("问", "答\n\n二")])
    assert json.loads(transcript.json()) == {"model": "m", "system": "s", "history": [["问", "答\n\n二"]]}
    assert transcript.markdown().endswith("**系统指令：**\n\ns\n\n**用户：**\n\n问\n\n**ChatGLM-6B：**\n\n答\n\n二\n")


@given(ROUNDS)
def test_what_is_written_is_read(rounds: list[tuple[str, str]]) -> None:
    rounds = [(a.encode("utf-8", "replace").decode(), b.encode("utf-8", "replace").decode()) for a, b in rounds]
    data = Transcript("demo", None, rounds).json().encode()
    assert read_json(data) == rounds
    assert read_json(json.dumps(rounds).encode()) == rounds


@pytest.mark.parametrize(
    "data", [b"", b"\xff", b"[", b"1", b"{}", b'{"history": 1}', b'[["a"]]', b'[["a", 1]]', b"[" * 100_000]
)
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(ChatGLMError, match=r"JSON|conversation"):
        read_json(data)
