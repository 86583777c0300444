"""Widths and lines of mixed Chinese and English text."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from chatglm.cells import cell_width, cut, wrap

BANNER = "欢迎使用 ChatGLM-6B 模型，输入内容即可进行对话，clear 清空对话历史，stop 终止程序"


def test_widths() -> None:
    assert [cell_width(text) for text in ("", "abc", "你好", "ａ，", "e\u0301", "👋", "\x1b\u200d")] == [
        0,
        3,
        4,
        4,
        1,
        2,
        0,
    ]
    assert [cut("你好ab", width) for width in (6, 5, 4, 3, 1)] == ["你好ab", "你好a", "你好", "你", ""]


def test_lines_break_between_words_and_clauses() -> None:
    assert wrap(BANNER, 81) == [BANNER]
    assert wrap(BANNER, 60) == [
        "欢迎使用 ChatGLM-6B 模型，输入内容即可进行对话，clear",
        "清空对话历史，stop 终止程序",
    ]
    assert wrap("a bc\n\n  你好 def", 6, "..") == ["a bc", "", "  你好", "..def"]
    assert wrap("abcdefgh 一二三", 4) == ["abcd", "efgh", "一二", "三"]


@given(st.text(alphabet="ab 你，。\n", max_size=60), st.integers(2, 30))
def test_nothing_is_lost_and_no_line_is_too_wide(text: str, width: int) -> None:
    lines = wrap(text, width)
    assert all(cell_width(line) <= width for line in lines)
    assert "".join("".join(lines).split()) == "".join(text.split())
