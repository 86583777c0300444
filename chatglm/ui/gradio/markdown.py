"""Messages as Markdown that shows them and does nothing else: HTML as text, no picture fetched from anywhere.

Knows: which parts of a message are code or formulas, where characters mean themselves. Does not know who renders it.
"""

from __future__ import annotations

import re
from collections.abc import Callable

# A fence, to its end or, while the answer is still being made, to the end of the text; a code span; a formula.
CODE = re.compile(
    r"^ {0,3}(?P<fence>`{3,}|~{3,})[^\n]*(?:\n(?s:.*?))??(?:^ {0,3}(?P=fence)[`~]*[ \t]*$|\Z)"
    r"|(?P<ticks>(?<!`)`+(?!`))(?s:.+?)(?<!`)(?P=ticks)(?!`)",
    re.MULTILINE,
)
FORMULA = re.compile(r"\$\$.+?\$\$|(?<!\\)\$[^\n$]+?(?<!\\)\$|\\\[.+?\\\]|\\\(.+?\\\)", re.DOTALL)


def shown_text(message: str) -> str:
    """`message` as Markdown in which only Markdown, code and formulas have a meaning."""
    return _by_parts(CODE, message, _without_code, lambda code: code)


def shown_text_undone(shown: str) -> str:
    """The message behind `shown_text`, after a visitor has edited it in that form."""
    return _by_parts(
        CODE,
        shown,
        lambda rest: _by_parts(FORMULA, rest, _prose_undone, _formula_undone),
        lambda code: code,
    )


def _without_code(text: str) -> str:
    return _by_parts(FORMULA, text, _prose, _formula)


def _by_parts(pattern: re.Pattern[str], text: str, others: Callable[[str], str], found: Callable[[str], str]) -> str:
    """`text` with what the pattern finds changed one way and all the rest another."""
    parts, end = [], 0
    for match in pattern.finditer(text):
        parts += [others(text[end : match.start()]), found(match[0])]
        end = match.end()
    return "".join([*parts, others(text[end:])])


def _prose(text: str) -> str:
    """No tags, no entities but our own, and no pictures; `>` stays, for quotations begin with it."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;")
    return escaped.replace("![", "!&#91;")


def _prose_undone(text: str) -> str:
    return text.replace("!&#91;", "![").replace("&lt;", "<").replace("&amp;", "&")


def _formula(formula: str) -> str:
    """The same in LaTeX, without a character that could begin a tag, or the two that could begin a picture."""
    return formula.replace("<", r"\lt ").replace("![", "!{}[")


def _formula_undone(formula: str) -> str:
    return formula.replace("!{}[", "![").replace(r"\lt ", "<")
