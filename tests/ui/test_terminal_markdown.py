"""Styled answers: what they look like on a screen, whatever the pieces they come in, and that no text is lost."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import pairwise

import pyte
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatglm.ui.terminal.markdown_writer import MarkdownWriter

SGR = re.compile(r"\x1b\[[0-9;]*m")
PROGRAM = '''```python
def f(items: list) -> None:
    """Two
    if lines."""
    return 3.5  # 注释
```
'''


@pytest.fixture(autouse=True, scope="module")
def _size() -> Iterable[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "60")
        patch.setenv("LINES", "20")
        yield


def written(*pieces: str, earlier: str = "") -> str:
    """The bytes for an answer that comes in these pieces."""
    output: list[str] = []
    writer = MarkdownWriter(output.append, earlier)
    for piece in pieces:
        writer.push(piece)
    writer.finish()
    return "".join(output)


def plain(*pieces: str, earlier: str = "") -> str:
    return SGR.sub("", written(*pieces, earlier=earlier))


def styles(text: str) -> dict[str, str]:
    """Styled text -> its SGR codes."""
    return {found[2]: found[1] for found in re.finditer(r"\x1b\[([0-9;]+)m(.*?)\x1b\[0m", written(text), re.DOTALL)}


def on_screen(text: str, size: tuple[int, int] = (60, 20)) -> list[str]:
    """Lines of a terminal, those that have scrolled away included."""
    screen = pyte.HistoryScreen(*size, history=1000)
    pyte.Stream(screen).feed(text.replace("\n", "\r\n"))
    above = ["".join(row[column].data for column in range(size[0])) for row in screen.history.top]
    return [line.rstrip() for line in (*above, *screen.display)]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("# 标题 **b**\n## two\n#no\n", "标题 b\ntwo\n#no\n"),
        ("**粗**，*斜*和`code`。***两*** 者", "粗，斜和code。两 者"),
        ("2 * 3 * 4, 2**3**4, a*b*c, `open, **open\n* x", "2 * 3 * 4, 2**3**4, a*b*c, `open, **open\n• x"),
        ("``a`b`` __init__ ` a` 3*", "a`b __init__ ` a` 3*"),
        ("- one\n  - two\n+ three\n-four\n1. five", "• one\n  • two\n• three\n-four\n1. five"),
        ("> quoted\n>\n> *on*", "│ quoted\n│ \n│ on"),
        ("---\n* * *\n--", f"{'─' * 40}\n{'─' * 40}\n--"),
        ("", ""),
        ("a\n\n\nb\n", "a\n\n\nb\n"),
        ("~~~\n# *x*\n```\n~~\n~~~\n*y*", "~~~\n# *x*\n```\n~~\n~~~\ny"),
        ("```one line```\n``` \n`\n``\n```", "one line\n``` \n`\n``\n```"),
        ("```python\nnever ends", "```python\nnever ends"),
        ("a | b\n| alone", "a | b\n| alone"),
    ],
)
def test_what_stands_there(text: str, shown: str) -> None:
    assert plain(text) == shown
    assert plain(*text) == shown  # letter by letter


def test_styles() -> None:
    assert styles("# a **b**\n") == {"a ": "1;36", "b": "1;36;1"}
    assert styles("**b** *i* `c` ***x***") == {"b": "1", "i": "3", "c": "36", "x": "1;3"}
    code = styles(PROGRAM)
    assert (code["def"], code["f"], code["3.5"], code["# 注释"]) == ("35", "34", "36", "90")
    assert code['    if lines."""'] == "32"  # a string goes on from line to line
    assert code["```python"] == code["```"] == "2"
    assert "\x1b" not in written("```no-such-language\nif x\n").split("\n")[1]


def test_text_comes_at_once_and_code_by_words() -> None:
    output: list[str] = []
    writer = MarkdownWriter(output.append)
    for piece, shown in (
        ("你好", "你好"), ("，**重", "，"), ("点**", ""), ("。", "重点。"),
        ("\n`", "\n"), ("`", ""), ("`py\n", "```py\n"),
        ("re", ""), ("turn", ""), (" ", "return "), ("# a", "# a"), (" b", " b"), ("\n``", "\n"), ("`\n", "```\n"),
    ):  # fmt: skip
        output.clear()
        writer.push(piece)
        assert SGR.sub("", "".join(output)) == shown, piece


markdown = st.text(alphabet="ab1 你*`#->~_\n\t", max_size=60)


@given(markdown, st.lists(st.integers(0, 60)))
def test_pieces_make_no_difference_and_no_letter_is_lost(text: str, cuts: list[int]) -> None:
    bounds = [0, *sorted(cuts), len(text)]
    pieces = [text[start:end] for start, end in pairwise(bounds)]
    assert plain(*pieces) == plain(text)
    kept = r"[^ab1你\n]"
    assert re.sub(kept, "", plain(text)) == re.sub(kept, "", text)
    assert "\x1b[" not in re.sub(r"\x1b\[[0-9;]+m[^\x1b]*\x1b\[0m", "", written(text))  # nothing is left switched on


TABLE = "|名称|Time|\n|:--|--:|\n|**冒泡**|1|\n|a\\|b|`200`|\n"
DRAWN = ["名称 │ Time", "─────┼─────", "冒泡 │    1", "a|b  │  200"]


@pytest.mark.parametrize("around", [("", ""), ("before\n\n", ""), ("before\n", "\nafter **x**\n")])
def test_a_table_is_drawn_in_the_place_of_its_rows(around: tuple[str, str]) -> None:
    before, after = around
    for pieces in ([before + TABLE + after], list(before + TABLE.removesuffix("\n" if not after else "") + after)):
        lines = on_screen("label: " + written(*pieces))
        start = lines.index(DRAWN[0])
        assert lines[start : start + 4] == DRAWN
        assert not any("|名称|" in line for line in lines)
        assert lines[0] == f"label: {before.strip()}".rstrip()
        assert ("after x" in lines) == bool(after)


def test_a_table_that_could_have_moved_stays_as_it_came(monkeypatch: pytest.MonkeyPatch) -> None:
    long = TABLE + "|x|1|\n" * 30
    wide = TABLE + f"|{'宽' * 31}|1|\n"
    torn = "|a|b|\nno rule\n"
    for table in (long, wide, torn):
        assert plain(table) == "\n" + table
        assert on_screen(written(table))[1 : len(table.splitlines())] == table.splitlines()[:-1] or table is wide
    output: list[str] = []
    writer = MarkdownWriter(output.append)
    writer.push(TABLE)
    writer.keep_lines()
    writer.push("after")
    monkeypatch.setenv("COLUMNS", "59")
    resized = MarkdownWriter(output.append)
    monkeypatch.setenv("COLUMNS", "60")
    resized.push(TABLE)
    monkeypatch.setenv("COLUMNS", "59")
    resized.push("after")
    assert "\x1b[J" not in "".join(output)


def test_the_rest_of_an_answer_knows_how_it_began() -> None:
    assert plain("x = 1\n```\n*i*", earlier="```python\nimport os\n") == "x = 1\n```\ni"
    assert plain("|3|4|\n", earlier="|a|b|\n|-|-|\n|1|2|\n") == "|3|4|\n"


def test_long_programs_and_strange_ones() -> None:
    lines = "".join(f"x{number} = {number}  # '''\n" for number in range(300))
    text = f"```python\n{lines}```\n"
    assert plain(*[text[i : i + 7] for i in range(0, len(text), 7)]) == text
    text = '```html\n<a href="x">\t&amp;</a>\n\x0b\u2028"""\n```'
    assert plain(*text) == text
