"""What is shown of a message: nothing acts, code and formulas stay, and what is undone is what was typed."""

from __future__ import annotations

import pytest
from chatglm.ui.gradio.markdown import CODE, shown_text, shown_text_undone
from hypothesis import given
from hypothesis import strategies as st

PIECES = (
    "<b>",
    "<script>",
    "&",
    "&lt;",
    "![",
    "](http://x)",
    "`",
    "``",
    "```\n",
    "\n```\n",
    "~~~\n",
    "$",
    "$$",
    "\\(",
    "\\)",
)
MESSAGES = st.lists(st.sampled_from(PIECES) | st.text(max_size=5), max_size=20).map("".join)


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("1 < 2 & 3 > 2", "1 &lt; 2 &amp; 3 > 2"),
        ("> quoted", "> quoted"),
        ("<img src=x> ![a](b)", "&lt;img src=x> !&#91;a](b)"),
        ("`a<b` and a<b", "`a<b` and a&lt;b"),
        ("```\n<a>\n```\n<b>", "```\n<a>\n```\n&lt;b>"),
        ("```\n<a>\nstill being written", "```\n<a>\nstill being written"),
        ("$a<b$ and $5 <b", r"$a\lt b$ and $5 &lt;b"),
        ("\\[a<b\\]", "\\[a\\lt b\\]"),
    ],
)
def test_examples(message: str, shown: str) -> None:
    assert shown_text(message) == shown
    assert shown_text_undone(shown) == message


@given(MESSAGES)
def test_no_tag_and_no_picture_outside_of_code(message: str) -> None:
    rest = CODE.sub("", shown_text(message))
    assert "<" not in rest
    assert "![" not in rest


@given(MESSAGES)
def test_what_is_undone_is_what_was_typed(message: str) -> None:
    assert shown_text_undone(shown_text(message)) == message
