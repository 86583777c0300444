"""Colours of program code that is still growing."""

from __future__ import annotations

from typing import Any

from pygments.lexers import get_lexer_by_name
from pygments.token import Comment, Keyword, Name, Number, Operator, String, Token
from pygments.util import ClassNotFound

from chatglm.ui.terminal.inline_markup import Pieces

# What the terminal's own palette names: readable on dark and light.
COLOURS = (
    (Comment, "90"),
    (Keyword, "35"),
    (Operator.Word, "35"),
    (String, "32"),
    (Number, "36"),
    (Name.Function, "34"),
    (Name.Class, "34"),
    (Name.Builtin, "36"),
    (Name.Decorator, "33"),
    (Name.Tag, "34"),
    (Name.Attribute, "36"),
)
# Of these more text changes nothing but the end.
GROWING = (Comment, String, Token.Text)
# They may begin on an earlier line.
OPEN = (Comment, String)
MAX_OPEN = 4000


class CodeColours:
    """Gives out each line of a program in pieces, words as soon as they are whole.

    A line is read by itself, or with those before it in which a string or comment began that is still open: reading
    the whole program for every token of an answer would take longer than the token.
    """

    def __init__(self, language: str) -> None:
        self._open, self._line, self._num_given = "", "", 0
        try:
            self._lexer: Any = get_lexer_by_name(language, stripnl=False, ensurenl=False)
        except ClassNotFound:
            self._lexer = None

    def push(self, text: str) -> Pieces:
        """What is certain of the line with `text` added."""
        self._line += text
        return self._give(is_all=False)

    def finish(self) -> Pieces:
        """The rest of the line."""
        return self._give(is_all=True)

    def end_line(self) -> None:
        """The next text begins a line."""
        text = f"{self._open}{self._line}\n"
        self._open, self._line, self._num_given = self._still_open(text), "", 0

    def _give(self, *, is_all: bool) -> Pieces:
        pieces: Pieces = []
        for end, kind in self._tokens(f"{self._open}{self._line}"):
            end -= len(self._open)
            if not is_all and end == len(self._line) and not _is_in(kind, GROWING):
                break
            if end > self._num_given:
                pieces.append((self._line[self._num_given : end], _colour(kind)))
                self._num_given = end
        return pieces

    def _still_open(self, text: str) -> str:
        """The end of `text` from the line on in which a string or comment begins that goes on after it; else ""."""
        start = len(text) + 1
        ends = [(0, None), *self._tokens(f"{text}x")]
        for (before, _), (_, kind) in zip(reversed(ends[:-1]), reversed(ends), strict=False):
            if not _is_in(kind, OPEN):
                break
            start = before
        return text[text.rfind("\n", 0, start) + 1 :] if start <= len(text) < start + MAX_OPEN else ""

    def _tokens(self, text: str) -> list[tuple[int, Any]]:
        """The end of each token and its kind."""
        if self._lexer is None:
            return [(len(text), Token.Text)]
        return [(index + len(value), kind) for index, kind, value in self._lexer.get_tokens_unprocessed(text)]


def _is_in(kind: Any, kinds: tuple[Any, ...]) -> bool:
    return any(kind in known for known in kinds)


def _colour(kind: Any) -> str:
    return next((colour for known, colour in COLOURS if kind in known), "")
