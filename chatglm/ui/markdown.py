"""Messages as Markdown that cannot do anything: no HTML, no picture that is fetched; code and formulas stay.

Each renderer sees code and formulas in other places, so each has a `Dialect`: where a `Dialect` finds code, the
renderer must find code too, since nothing is escaped there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal


def _fence(indent: str) -> str:
    """A fenced code block, to its end or, while the answer is being generated, to the end of the text."""
    return (
        rf"^(?P<indent>{indent})(?P<fence>`{{3,}}(?=[^`\n]*$)|~{{3,}})[ \t]*(?P<language>[^\s`]*)[^\n]*"
        rf"(?:\n(?P<body>(?s:.*?)))??(?:^{indent}(?P=fence)[`~]*[ \t]*$|\Z)"
    )


@dataclass(frozen=True)
class Dialect:
    """One renderer's Markdown.

    Attributes:
        code: fenced blocks and code spans, which are left alone.
        formula: what it takes for a formula.
        write_formula: makes a formula inert.
        write_prose: makes everything else inert.
    """

    code: re.Pattern[str]
    formula: re.Pattern[str]
    write_formula: Callable[[str], str]
    write_prose: Callable[[str], str]

    def write(self, text: str) -> str:
        """`text` with its formulas and prose made inert."""
        return _sub(self.code, text, lambda code: code, self._write_without_code)

    def _write_without_code(self, text: str) -> str:
        return _sub(self.formula, text, self.write_formula, self.write_prose)


def _sub(pattern: re.Pattern[str], text: str, found: Callable[[str], str], others: Callable[[str], str]) -> str:
    """`text` with what the pattern finds changed one way and all the rest another."""
    parts, end = [], 0
    for match in pattern.finditer(text):
        parts += [others(text[end : match.start()]), found(match[0])]
        end = match.end()
    return "".join([*parts, others(text[end:])])


# Gradio's chat and the saved web page. Both render HTML, and pictures of any address.

CODE = re.compile(rf"{_fence(' {0,3}')}|(?P<ticks>(?<!`)`+(?!`))(?s:.+?)(?<!`)(?P=ticks)(?!`)", re.MULTILINE)
FORMULA = re.compile(r"\$\$.+?\$\$|(?<!\\)\$[^\n$]+?(?<!\\)\$|\\\[.+?\\\]|\\\(.+?\\\)", re.DOTALL)
# `>` stays in prose: quotations begin with it. In a formula, `<` becomes a LaTeX command.
_INERT = Dialect(
    CODE,
    FORMULA,
    lambda formula: formula.replace("<", r"\lt ").replace("![", "!{}["),
    lambda prose: prose.replace("&", "&amp;").replace("<", "&lt;").replace("![", "!&#91;"),
)
_INERT_UNDONE = Dialect(
    CODE,
    FORMULA,
    lambda formula: formula.replace("!{}[", "![").replace(r"\lt ", "<"),
    lambda prose: prose.replace("!&#91;", "![").replace("&lt;", "<").replace("&amp;", "&"),
)
inert_markdown = _INERT.write
message_of_inert_markdown = _INERT_UNDONE.write  # for a message that a visitor has edited in that form


# Streamlit. It shows HTML as text by itself, but has formulas, `:red[...]` and pictures.

# Streamlit's Markdown may find a picture where a pattern does not. WORD JOINER, which cannot be seen, ends that.
PICTURE = re.compile(r"!(?=\[)")
NO_PICTURE = "!\N{WORD JOINER}"
LINE_END = re.compile(r"(?<!\n)\n(?!\n)")
PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")
# Fences may be indented at will, as in lists: the page draws them, not Markdown.
BLOCK = re.compile(_fence(r"[ \t]*"), re.MULTILINE)
# A formula on lines of its own. This and what follows is bounded, so that no text takes long.
FORMULA_BLOCK = re.compile(
    r"^[ \t]*(?:\$\$(?P<dollars>(?:(?!\$\$).){1,4000}?)\$\$|\\\[(?P<brackets>(?:(?!\$\$|\\\]).){1,4000}?)\\\])[ \t]*$",
    re.MULTILINE | re.DOTALL,
)


def _without_picture(formula: str) -> str:
    return PICTURE.sub("!{}", formula)  # TeX ignores an empty group


def _dollar_formula(formula: str) -> str:
    """The formula in the delimiters that Streamlit knows."""
    if formula.startswith("\\("):
        formula = f"${formula[2:-2].strip()}$"
    return _without_picture(formula)


_STREAMLIT = Dialect(
    re.compile(r"`[^`\n]{1,1000}`|``[^\n]{1,1000}?``"),
    re.compile(
        r"\\\([^\n$]{1,1000}?\\\)|(?<!\\)\$\$[^$\n]{1,1000}\$\$"
        r"|(?<!\\)\$(?![\s$])[^$\n]{1,1000}(?<!\s)\$(?!\d)"
    ),
    _dollar_formula,
    lambda prose: re.sub(r"(?P<escape>\\.)|!(?=\[)|\$|:(?=[a-z][a-z-]{1,40}\[)", _escaped, prose),
)


def _escaped(match: re.Match[str]) -> str:
    return match[0] if match["escape"] else "!\\" if match[0] == "!" else f"\\{match[0]}"


def streamlit_markdown(text: str) -> str:
    """Markdown of a text without code blocks: lines stay lines, formulas formulas, prices prices."""
    return PICTURE.sub(NO_PICTURE, LINE_END.sub("  \n", _STREAMLIT.write(text)))


def plain(text: str) -> str:
    """Streamlit's Markdown for a text without any markup."""
    return LINE_END.sub("  \n", PUNCTUATION.sub(r"\\\1", text))


@dataclass(frozen=True)
class TextBlock:
    """A part of a message: prose as written, the code of a fence, or a formula in TeX."""

    kind: Literal["prose", "code", "formula"]
    text: str
    language: str = ""


def text_blocks(text: str) -> list[TextBlock]:
    """The parts of a message in order."""
    blocks: list[TextBlock] = []
    end = 0
    for match in BLOCK.finditer(text):
        blocks += _formulas_apart(text[end : match.start()])
        lines = (match["body"] or "").removesuffix("\n").split("\n")
        code = "\n".join(line.removeprefix(match["indent"]) for line in lines)
        blocks.append(TextBlock("code", code, match["language"]))
        end = match.end()
    return [*blocks, *_formulas_apart(text[end:])]


def _formulas_apart(text: str) -> Iterator[TextBlock]:
    end = 0
    for match in FORMULA_BLOCK.finditer(text):
        yield from _prose_block(text[end : match.start()])
        yield TextBlock("formula", _without_picture(match["dollars"] or match["brackets"]).strip())
        end = match.end()
    yield from _prose_block(text[end:])


def _prose_block(text: str) -> Iterator[TextBlock]:
    if text.strip():
        yield TextBlock("prose", text.strip("\n"))
