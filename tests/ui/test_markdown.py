"""Text of people and models as Markdown that cannot do anything, for Gradio and for Streamlit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatglm.ui.markdown import (
    CODE,
    TextBlock,
    inert_markdown,
    message_of_inert_markdown,
    plain,
    streamlit_markdown,
    text_blocks,
)

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
        ("``` `\n<a>", "``` `\n&lt;a>"),  # no fence: nothing behind it may have a backtick
        ("$a<b$ and $5 <b", r"$a\lt b$ and $5 &lt;b"),
        ("\\[a<b\\]", "\\[a\\lt b\\]"),
    ],
)
def test_examples(message: str, shown: str) -> None:
    assert inert_markdown(message) == shown
    assert message_of_inert_markdown(shown) == message


@given(MESSAGES)
def test_no_tag_and_no_picture_outside_of_code(message: str) -> None:
    rest = CODE.sub("", inert_markdown(message))
    assert "<" not in rest
    assert "![" not in rest


@given(MESSAGES)
def test_what_is_undone_is_what_was_typed(message: str) -> None:
    assert message_of_inert_markdown(inert_markdown(message)) == message


# Streamlit


@given(st.text("![](`~$\\\n :x|<", max_size=60))
def test_no_prose_and_no_formula_can_name_a_picture(text: str) -> None:
    for block in text_blocks(text):
        if block.kind == "prose":
            assert "![" not in streamlit_markdown(block.text)
        if block.kind == "formula":
            assert "![" not in block.text
            assert "$$" not in block.text  # which would end it, and let what follows be Markdown


@given(st.text("ab`~ \n$", max_size=40), st.text("ab!*_[<$\\ \n", max_size=40), st.text("ab \n", max_size=40))
def test_code_is_shown_as_it_is(before: str, code: str, after: str) -> None:
    fence = "`" * 41
    found = text_blocks(f"x{before}\n~~~\n{fence}\n{fence}py\n{code}\n{fence}\n{after}")
    if "~~~" not in before and "```" not in before:
        assert found[-1].text.strip("\n") == f"{fence}\n{fence}py\n{code}\n{fence}\n{after}".strip("\n")
    assert TextBlock("code", code, "py") in text_blocks(f"说：\n{fence}py\n{code}\n{fence}\n{after}")


def test_parts_of_an_answer() -> None:
    text = "1. 看：\n   ```c++\n   #include <x>\n     y\n   ```\n\\[a_1\n+ b\\]\n$$n![1]$$\n完\n```\n还没"
    assert text_blocks(text) == [
        TextBlock("prose", "1. 看："),
        TextBlock("code", "#include <x>\n  y", "c++"),
        TextBlock("formula", "a_1\n+ b"),
        TextBlock("formula", "n!{}[1]"),
        TextBlock("prose", "完"),
        TextBlock("code", "还没"),
    ]


@pytest.mark.parametrize(
    ("text", "markdown"),
    [
        ("质能方程 $E=mc^2$ 与 \\(a\\)", "质能方程 $E=mc^2$ 与 $a$"),
        ("$5 和 $10", "\\$5 和 \\$10"),
        ("`$HOME` 与 $HOME", "`$HOME` 与 \\$HOME"),
        ("\\$5", "\\$5"),
        (":red[x] 10:30", "\\:red[x] 10:30"),
        ("一\n二\n\n三", "一  \n二\n\n三"),
    ],
)
def test_prose_means_what_it_says(text: str, markdown: str) -> None:
    assert streamlit_markdown(text) == markdown


def test_plain_text_has_no_markup() -> None:
    assert plain("/a_b_c/*.bin <x>") == "\\/a\\_b\\_c\\/\\*\\.bin \\<x\\>"
