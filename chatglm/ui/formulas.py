r"""Formulas in Markdown, `$..$`, `$$..$$`, `\(..\)` and `\[..\]`: where they are, and MathML for them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from html import escape, unescape
from typing import TYPE_CHECKING

from latex2mathml.converter import convert_to_element

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

    from markdown_it import MarkdownIt
    from markdown_it.rules_block import StateBlock
    from markdown_it.rules_inline import StateInline

MAX_LENGTH, MAX_LINES = 2000, 100  # a longer formula stays text
# A price is no formula: `$` neither follows a digit nor stands before one at the end, and hugs what it encloses.
_FORMS = {
    "$$": re.compile(rf"\$\$((?:[^$\\]|\\[\s\S]|\$(?!\$)){{1,{MAX_LENGTH}}}?)\$\$"),
    "$": re.compile(rf"(?<!\d)\$(?![\s$])((?:[^$\\\n]|\\.){{1,{MAX_LENGTH}}})(?<!\s)\$(?!\d)"),
    r"\[": re.compile(rf"\\\[((?:[^\\]|\\[^\]]){{1,{MAX_LENGTH}}}?)\\\]"),
    r"\(": re.compile(rf"\\\(((?:[^\\]|\\[^)]){{1,{MAX_LENGTH}}}?)\\\)"),
}
# What stands bare in a formula, outside commands and braces.
_NOT_BARE = re.compile(r"\\[A-Za-z]+|\\.|\{[^{}]*\}")
_WORD, _CHINESE = re.compile(r"[A-Za-z]{2,}|[\u4e00-\u9fff]"), re.compile(r"[\u4e00-\u9fff]")
_AMOUNT = re.compile(r"\d[\d.,]*\s*[,，、;；。\u4e00-\u9fff]")
_CLOSING = {"$$": "$$", "$": "$", r"\[": r"\]", r"\(": r"\)"}


def add_formulas(markdown: MarkdownIt) -> None:
    """Make the parser find formulas: tokens `formula`, with `markup` "display" for those on lines of their own."""
    markdown.inline.ruler.before("escape", "formula", _formula)
    markdown.block.ruler.before(
        "paragraph", "formula_lines", _formula_lines, {"alt": ["paragraph", "blockquote", "list"]}
    )


def _opening(text: str, position: int = 0) -> str | None:
    two = text[position : position + 2]
    return two if two in _FORMS else "$" if two.startswith("$") else None


def _formula(state: StateInline, silent: bool) -> bool:
    opening = _opening(state.src, state.pos)
    # Where no formula begins, none begins either before the end of what was searched: each letter is read once.
    if opening is None or state.pos < state.env.get(opening, 0):
        return False
    found = _FORMS[opening].match(state.src, state.pos)
    if (
        found is None
        or not found[1].strip()
        or (opening == "$" and _is_price(found[1], state.src[found.end() : found.end() + 2]))
    ):
        if opening[0] == "\\":
            state.env[opening] = state.pos + MAX_LENGTH
        return False
    if not silent:
        token = state.push("formula", "", 0)
        token.content = found[1].strip()
        token.markup = "display" if opening in ("$$", r"\[") else "inline"
        token.info = found[0]
    state.pos = found.end()
    return True


def _is_price(tex: str, following: str) -> bool:
    """Whether two `$` stand for money or a variable: words between them, and a name, an amount or Chinese with it."""
    bare = _NOT_BARE.sub(" ", tex)
    has_word = _WORD.search(bare) is not None
    if following[:1].isascii() and following[:1].isalpha():
        return has_word or tex[-1] in ",，、;；:：/"
    if not tex[0].isdigit():
        return False
    return has_word if re.match(r"\s\d", following) else bool(_AMOUNT.match(tex) and _CHINESE.search(bare))


def _formula_lines(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """A paragraph of the lines that a display formula takes; one of its lines could else begin a list or a heading."""
    if state.is_code_block(start):
        return False
    line = _line(state, start)
    if _opening(line) in ("$$", r"\["):
        opening, rest = line[:2], line[2:]
    elif _opening(line[-2:]) in ("$$", r"\["):
        opening, rest = line[-2:], ""
    else:
        return False
    last, searched = start, f"lines {opening}"
    if start < state.env.get(searched, 0):
        return False
    while _CLOSING[opening] not in rest:
        last += 1
        rest = _line(state, last) if last < end and state.sCount[last] >= state.blkIndent else ""
        if not rest or last - start > MAX_LINES:
            state.env[searched] = last
            return False
    if not silent:
        state.line = last + 1
        state.push("paragraph_open", "p", 1).map = [start, state.line]
        token = state.push("inline", "", 0)
        token.content = state.getLines(start, state.line, state.blkIndent, False).strip()
        token.map, token.children = [start, state.line], []
        state.push("paragraph_close", "p", -1)
    return True


def _line(state: StateBlock, number: int) -> str:
    return state.src[state.bMarks[number] + state.tShift[number] : state.eMarks[number]].rstrip()


# MathML

# Definitions could grow without bound.
_REFUSED = re.compile(r"\\(?:re)?new|\\provide|\\def(?![a-z])|\\let(?![a-z])|\\Declare")
_ALIGNED = re.compile(r"(\\(?:begin|end)\s*\{)(?:aligned|align|gathered|gather\*?|eqnarray\*?|multline\*?)\}")
_ATTRIBUTES = frozenset(
    [
        "accent",
        "accentunder",
        "columnalign",
        "columnlines",
        "columnspacing",
        "depth",
        "display",
        "displaystyle",
        "fence",
        "form",
        "height",
        "largeop",
        "linethickness",
        "lspace",
        "mathbackground",
        "mathcolor",
        "mathsize",
        "mathvariant",
        "maxsize",
        "minsize",
        "movablelimits",
        "notation",
        "rspace",
        "rowlines",
        "rowspacing",
        "scriptlevel",
        "separator",
        "stretchy",
        "symmetric",
        "voffset",
        "width",
    ]
)
# Words, a colour, or lengths of which none could cover the page.
_VALUE = re.compile(r"#[\da-fA-F]{3,8}|(?:[a-z -]{1,40}|[+-]?\d{0,2}(?:\.\d{1,4})?[a-z%]{0,2} ?){1,4}")
_TAGS = frozenset(
    [
        "math",
        "menclose",
        "mfrac",
        "mi",
        "mmultiscripts",
        "mn",
        "mo",
        "mover",
        "mpadded",
        "mphantom",
        "mprescripts",
        "mroot",
        "mrow",
        "mspace",
        "msqrt",
        "mstyle",
        "msub",
        "msubsup",
        "msup",
        "mtable",
        "mtd",
        "mtext",
        "mtr",
        "munder",
        "munderover",
        "none",
    ]
)


@lru_cache(maxsize=1024)
def mathml(tex: str, display: bool) -> str | None:
    """MathML of a formula; None if it cannot be converted."""
    if _REFUSED.search(tex):
        return None
    try:
        tree = convert_to_element(_ALIGNED.sub(r"\1align*}", tex), display="block" if display else "inline")
    except Exception:  # of any kind: the converter reads whatever a model writes
        return None
    return "".join(_written(tree))


def _written(element: Element) -> Iterator[str]:
    """The element in HTML; the converter's own writer does not escape text."""
    tag = element.tag if element.tag in _TAGS else "mrow"
    known = ((name, element.attrib[name]) for name in sorted(_ATTRIBUTES.intersection(element.attrib)))
    attributes = "".join(f' {name}="{value}"' for name, value in known if _VALUE.fullmatch(value))
    yield f"<{tag}{attributes}>"
    yield escape(unescape(element.text or ""))
    for child in element:
        yield from _written(child)
        yield escape(unescape(child.tail or ""))
    yield f"</{tag}>"
