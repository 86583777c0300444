"""Text of people and models as HTML that cannot do anything: laws of `render` and `render_plain`."""

from __future__ import annotations

import random
import sys
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatglm.ui import formulas, highlighting, markdown
from chatglm.ui.markdown import STYLE, render, render_plain

words = str.split
TAGS = set(
    words("a blockquote br code div em h1 h2 h3 h4 h5 h6 hr li ol p pre s span strong table tbody td th thead tr ul")
)
ATTRIBUTES = {
    "a": {"href", "title", "target", "rel"},
    "div": {"class", "tabindex"},
    "span": {"class", "tabindex"},
    "pre": {"tabindex"},
    "ol": {"start"},
    "td": {"class"},
    "th": {"class"},
}
FENCE_NAMES = words("""
C++ cpp CPP c++ c C h hpp Cpp cc objc cuda java Java JAVA kotlin kt scala groovy C# c# cs csharp F# fsharp vb js JS
Js javascript JavaScript jsx node mjs ts TS typescript TypeScript tsx json JSON json5 jsonc yaml yml YAML toml ini
cfg conf properties env dotenv py Py Python python python3 py3 ipython pycon sh SH bash Bash shell Shell zsh fish
console terminal powershell ps1 pwsh bat cmd batch dockerfile Dockerfile docker makefile Makefile cmake nginx perl
pl ruby rb r R julia elixir go golang Go rust rs Rust swift Swift dart php PHP html HTML xml svg vue svelte css
scss less sql SQL mysql postgresql sqlite plsql lua haskell hs ada latex tex LaTeX matlab octave erlang prolog lisp
scheme clojure elisp asm nasm diff patch text txt plain plaintext none markdown md mermaid graphviz dot vim awk sed
regex http csv log output constructor toString __proto__ hasOwnProperty valueOf prototype isPrototypeOf
__defineGetter__ Object.prototype undefined null NaN 中文 代码 {.python} python,linenos a&b "x" <x> ..
""")
PIECES = words(r"""
< > & &lt; <b> </div> <script>alert(1)</script> <img/src=x/onerror=y> javascript:x ![ [ ]( ](http://x) ](data:x) )
` `` ``` ~~~ $ $$ \( \) \[ \] \ * ** _ ~~ | --- |-|-| # > - 1. http://x <http://x> <data:x> \frac{1}{2} \text{<b>}
\href{javascript:x}{y} \style{x}{y} \begin{matrix} \end{matrix} { } ^ 中 ：
""")
TEXTS = st.lists(st.sampled_from([*PIECES, "\n", "\n\n", "    ", "```py\n"]) | st.text(max_size=4), max_size=25).map(
    "".join
)
HOSTILE = (
    *words(
        "[ * _ ` $ ~ | < \\ ( ! & # > ![ [a]( [[a](b) ![a]( **a* *a_ a** ``a` $a $$a \\(a \\[a |- ```a <a **： 中* ]["
    ),
    *("- ", "> ", "> - ", "\n", "    ", "\t", "\\[a\n", "\\[\\\\]\n", "$$a\n", "x $$\n", "a|b\n", "|\n|-\n", "~~~\n"),
    *("- a\n", "> a\n", "a\n", "```cpp\n\n", "\\(\\\\", "![[", "*a `"),
)


class Page(HTMLParser):
    """What a browser would find: elements, texts of `code`, the language of each block, and the whole text."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.codes: list[str] = []
        self.languages: list[str] = []
        self.text = ""
        self.open: list[str] = []
        self._class = ""
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        self._class = dict(attrs).get("class") or ""
        if tag not in ("br", "hr"):
            self.open.append(tag)
        if tag == "code":
            self.codes.append("")
        if self._class == "code-language":
            self.languages.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self._class = ""

    def handle_data(self, data: str) -> None:
        self.text += data
        if "code" in self.open:
            self.codes[-1] += data
        if self._class == "code-language":
            self.languages[-1] += data

    def tags(self, name: str) -> list[dict[str, str]]:
        return [attributes for tag, attributes in self.elements if tag == name]


@given(TEXTS)
def test_nothing_but_harmless_elements(text: str) -> None:
    for tag, attributes in Page(render(text)).elements:
        is_formula = tag in formulas._TAGS
        assert is_formula or tag in TAGS
        assert attributes.keys() <= (formulas._ATTRIBUTES if is_formula else ATTRIBUTES.get(tag, set()))
        if tag == "a":
            assert attributes["href"].lower().startswith(("http://", "https://", "mailto:"))
            assert (attributes["target"], attributes["rel"]) == ("_blank", "noopener noreferrer nofollow")


@given(TEXTS)
def test_every_beginning_of_an_answer_is_drawn_as_if_it_were_the_whole(text: str) -> None:
    streamed = [render(text[:end]) for end in range(len(text) + 1)]
    markdown._paragraph.cache_clear()
    markdown._coloured.cache_clear()
    assert streamed[-1] == render(text)


@given(st.text("ab<&\"'`~$\\*_[] \t\n", max_size=60), st.sampled_from(FENCE_NAMES), st.booleans())
def test_code_is_the_code(code: str, name: str, is_closed: bool) -> None:
    end = f"\n{'`' * 70}\n**后**" if is_closed else ""
    page = Page(render(f"说：\n{'`' * 70}{name}\n{code}{end}"))
    if is_closed:
        assert page.codes == [code]
    else:  # space at the end of what there is may become anything
        assert [shown.rstrip() for shown in page.codes] == [code.rstrip()]
    assert page.languages == [name]


@given(st.text())
def test_a_question_is_shown_as_typed(text: str) -> None:
    expected = "".join("\ufffd" if letter == "\0" or "\ud800" <= letter <= "\udfff" else letter for letter in text)
    page = Page(render_plain(text))
    assert page.text == expected.replace("\r\n", "\n").replace("\r", "\n")
    assert page.elements == [("div", {"class": "plain"})]


def test_lone_surrogates_can_be_sent() -> None:
    for shown in (render("a\ud800**b** `\udfff`"), render_plain("\ud800")):
        assert "\ufffd" in shown
        shown.encode()


def test_fence_names_of_any_spelling_in_any_order() -> None:
    names = [*FENCE_NAMES, *random.Random(1).sample(FENCE_NAMES, len(FENCE_NAMES))]
    assert len(set(names)) >= 150
    code = 'if (x < 1) { return "a"; } // <b>'
    page = Page(render("\n".join(f"```{name}\n{code}\n```" for name in names)))
    assert page.languages == names
    assert page.codes == [code] * len(names)
    for name in ("C++", "py", "sh", "JS", "C#", "ts", "Python", "SQL", "html"):
        assert '<span class="' in highlighting.highlight(code, name)
    for name in ("constructor", "toString", "__proto__", "hasOwnProperty", "text", ""):
        assert "<" not in highlighting.highlight(code, name)


@pytest.mark.parametrize(
    ("language", "code", "parts"),
    [
        (
            "python",
            'def f(x):  # "c"\n    return """a\n#b"""',
            {"c": ['# "c"'], "s": ['"""a\n#b"""'], "k": ["def", "return"]},
        ),
        ("cpp", '#include <a>\nint x = 0x1F; /* "y" */', {"k": ["#include", "int"], "m": ["0x1F"], "c": ['/* "y" */']}),
        ("sh", 'echo "$HOME" ${x#y} $HOME # z', {"k": ["echo"], "b": ["${x#y}", "$HOME"], "c": ["# z"]}),
        ("sql", "Select 'a' -- b", {"k": ["Select"], "s": ["'a'"], "c": ["-- b"]}),
        ("json", '{"a": "b", "c": [1.5e3, true]}', {"a": ['"a"', '"c"'], "s": ['"b"'], "m": ["1.5e3"], "k": ["true"]}),
        ("html", '<a href="x">if</a><!-- y -->', {"b": ["<a", ">", "</a", ">"], "a": ["href"], "c": ["<!-- y -->"]}),
        ("diff", "+a\n-b\n c", {"i": ["+a"], "d": ["-b"]}),
    ],
)
def test_colours(language: str, code: str, parts: dict[str, list[str]]) -> None:
    found: dict[str, list[str]] = {}
    for match in highlighting._pattern(highlighting._FAMILY_OF[language]).finditer(code):
        found.setdefault(str(match.lastgroup), []).append(match[0])
    assert {name: found.get(name) for name in parts} == parts
    assert all(f".markdown .code .{name} " in STYLE for name in found)


@pytest.mark.parametrize(
    ("text", "num_inline", "num_display"),
    [
        ("$5 和 $10", 0, 0),
        ("$5 to $10", 0, 0),
        ("从$5涨到$6", 0, 0),
        ("花费$20,收入$y", 0, 0),
        ("花费$x,收入$y，结余$z", 0, 0),
        ("花费$20，收入$元", 0, 0),
        ("花了$20买书，$30.5买笔，$又", 0, 0),
        ("A costs $5, B costs US$ 10", 0, 0),
        ("$5 to C$ 10, or HK$ 50", 0, 0),
        ("$x and $y, $HOME/bin:$PATH", 0, 0),
        ("第$n$th 项，$5x$ 与 $2ab$ 是 $3\\text{ 元}$ 10", 4, 0),
        ("$5\\sin x$ 10, $v_{max}$m/s, $速度=\\frac{路程}{时间}$和$2\\times 长$", 4, 0),
        ("\\$x\\$ 与 `$x$` 与 $HOME", 0, 0),
        ("质能方程 $E=mc^2$，$a$和$b$", 3, 0),
        ("\\(a\\) 与 \\(b < c\\)", 2, 0),
        ("行内 \\[a\\] 与 $$b$$ 在一行", 0, 2),
        ("\\[\na\n+ b\n- c\n# d\n\\]\n完", 0, 1),
        ("得：$$\na\n+ b\n$$。", 0, 1),
        ("- 项\n  $$\n  x\n  + y\n  $$\n> \\[\n> a\n> + b\n> \\]", 0, 2),
        ("$$a \\text{$x$} b$$", 0, 1),
        ("$$", 0, 0),
        ("$$\n未完", 0, 0),
        ("\\[ 未完\n\n\\]", 0, 0),
        ("\\begin{x} $\\begin{aligned}a&=b\\\\&=c\\end{aligned}$", 1, 0),
        ("| a |\n|---|\n| $x$ |\n\n# $y$\n\n**$z$**", 3, 0),
    ],
)
def test_formulas_and_prices(text: str, num_inline: int, num_display: int) -> None:
    shown = [attributes["display"] for attributes in Page(render(text)).tags("math")]
    assert (shown.count("inline"), shown.count("block")) == (num_inline, num_display)


@pytest.mark.parametrize(
    "tex",
    [
        "\\frac",
        "x^",
        "{",
        "a_b_c",
        "\\begin{foo}x",
        "\\left(",
        "\\newcommand{\\a}{b}\\a",
        "\\def\\a{b}",
        "x" * 1999 + "^",
    ],
)
def test_a_formula_that_cannot_be_converted_is_shown_as_its_source(tex: str) -> None:
    assert Page(render(f"a \\({tex}\\) b")).codes == [f"\\({tex}\\)"]


def test_formulas_cannot_carry_html_or_cover_the_page() -> None:
    page = Page(render("$\\text{<img src=x>}$ $\\raisebox{999em}{x}$ $\\textcolor{red;x:y}{z}$ $\\color{red}x$"))
    assert "<img\xa0src=x>" in page.text
    assert not any("999" in value or ";" in value for _, attributes in page.elements for value in attributes.values())
    assert {"mathcolor": "red"} in page.tags("mstyle")


def test_what_people_write() -> None:
    page = Page(
        render(
            "**重点：**后文，**“引用”**是\n第二行 ~~删~~\n---\n[a](http://x) ![图](http://x/1.png) [b](javascript:x)"
        )
    )
    assert len(page.tags("strong")) == 2
    assert len(page.tags("br")) == len(page.tags("s")) == len(page.tags("hr")) == 1
    assert [link["href"] for link in page.tags("a")] == ["http://x", "http://x/1.png"]
    assert "[b](javascript:x)" in page.text
    table = render("| a | b |\n|:-:|--:|\n| 1 | 2 |")
    assert [cell.get("class") for cell in Page(table).tags("td")] == ["center", "right"]
    nested = Page(render("> " * 60 + "深"))
    assert "深" in nested.text


def test_long_texts_are_shown_as_they_are() -> None:
    assert render("*" * 300_000) == render_plain("*" * 300_000)


def num_calls(text: str) -> int:
    """How many functions `render` calls, those of C among them."""
    calls = 0

    def count(_: object, event: str, __: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    markdown._paragraph.cache_clear()
    before = sys.getprofile()
    sys.setprofile(count)
    try:
        render(text)
    finally:
        sys.setprofile(before)
    return calls


@pytest.mark.parametrize("unit", HOSTILE)
def test_twice_the_text_takes_at_most_twice_the_steps(unit: str) -> None:
    once, twice = (num_calls((unit * length)[:length]) for length in (1000, 2000))
    assert twice <= 2.5 * once + 1000
