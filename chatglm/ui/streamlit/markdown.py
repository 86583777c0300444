"""Text of people and models as Streamlit can show it: code, formulas and prose apart, and nothing that loads anything.

Knows: which marks Streamlit's Markdown would turn into something else than they say. HTML it shows as text by itself.
Does not know how a piece is drawn.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

# A model may name a picture anywhere, and loading it would tell that place who reads what. Between these two
# characters, one that cannot be seen (WORD JOINER) makes text of it. Whatever else Markdown sees in the text, there is
# no other way to a picture; code is not touched, since it is no Markdown by then.
IMAGE = re.compile(r"!(?=\[)")
NO_IMAGE = "!\N{WORD JOINER}"

FENCE = re.compile(r"(?P<indent>[ \t]*)(?P<marks>`{3,}|~{3,})[ \t]*(?P<language>[^`\s]*)[^`]*")
# Bounded, so that no text takes long.
FORMULA = re.compile(
    r"^[ \t]*(?:\$\$(?P<dollars>(?:(?!\$\$).){1,4000}?)\$\$|\\\[(?P<brackets>(?:(?!\$\$|\\\]).){1,4000}?)\\\])[ \t]*$",
    re.MULTILINE | re.DOTALL,
)
INLINE = re.compile(
    r"""
    (?P<code> `[^`\n]{1,1000}` | ``[^\n]{1,1000}?`` )
    | \\\( (?P<brackets> [^\n$]{1,1000}? ) \\\)
    | (?P<escape> \\. )
    | (?P<display> \$\$[^$\n]{1,1000}\$\$ )
    | \$ (?P<dollars> (?![\s$]) [^$\n]{1,1000} (?<!\s) ) \$ (?!\d)
    | (?P<picture> ! (?= \[ ) )
    | \$
    | : (?= [a-z][a-z-]{1,40}\[ )
    """,
    re.VERBOSE,
)
LINE_END = re.compile(r"(?<!\n)\n(?!\n)")
PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")


@dataclass(frozen=True)
class Piece:
    """A part of a text.

    Attributes:
        kind: what it is.
        text: the code, the formula in TeX, or prose as written.
        language: of code, as the text names it; may be empty.
    """

    kind: Literal["prose", "code", "formula"]
    text: str
    language: str = ""


def pieces(text: str) -> list[Piece]:
    """The parts of a text in order. Code whose end is still to come reaches to the end of the text."""
    parts: list[Piece] = []
    for part in _code_apart(text):
        parts += [part] if part.kind == "code" else _formulas_apart(part.text)
    return parts


def prose(text: str) -> str:
    """Markdown of a text without code blocks: lines stay lines, formulas are formulas, prices are prices."""
    return IMAGE.sub(NO_IMAGE, LINE_END.sub("  \n", INLINE.sub(_inline, text)))


def plain(text: str) -> str:
    """Markdown that shows a text as it is."""
    return LINE_END.sub("  \n", PUNCTUATION.sub(r"\\\1", text))


def _code_apart(text: str) -> Iterator[Piece]:
    """Prose and fenced code in turns; a fence may be indented, as in lists."""
    fence: re.Match[str] | None = None
    lines: list[str] = []
    for line in text.split("\n"):
        if fence is None and (found := FENCE.fullmatch(line)):
            yield from _prose(lines)
            fence, lines = found, []
        elif fence is not None and _closes(line, fence["marks"]):
            yield _code(lines, fence)
            fence, lines = None, []
        else:
            lines.append(line)
    if fence is not None:
        yield _code(lines, fence)
    else:
        yield from _prose(lines)


def _prose(lines: list[str]) -> Iterator[Piece]:
    text = "\n".join(lines).strip("\n")
    if text.strip():
        yield Piece("prose", text)


def _code(lines: list[str], fence: re.Match[str]) -> Piece:
    return Piece("code", "\n".join(line.removeprefix(fence["indent"]) for line in lines), fence["language"])


def _closes(line: str, marks: str) -> bool:
    stripped = line.strip()
    return len(stripped) >= len(marks) and set(stripped) == {marks[0]}


def _formulas_apart(text: str) -> Iterator[Piece]:
    """Prose and formulas that stand on lines of their own."""
    end = 0
    for match in FORMULA.finditer(text):
        yield from _prose([text[end : match.start()]])
        yield Piece("formula", _tex(match["dollars"] or match["brackets"]).strip())
        end = match.end()
    yield from _prose([text[end:]])


def _tex(formula: str) -> str:
    """A formula that is no picture: TeX does not care about an empty group."""
    return IMAGE.sub("!{}", formula)


def _inline(match: re.Match[str]) -> str:
    """Formulas in the delimiters Streamlit knows; pictures, single dollars and `:red[...]` as they are written."""
    if match["code"] or match["escape"]:
        return match[0]
    if match["picture"]:
        return "!\\"
    if formula := match["brackets"] or match["dollars"]:
        return f"${_tex(formula).strip()}$"
    return _tex(match[0]) if match["display"] else f"\\{match[0]}"
