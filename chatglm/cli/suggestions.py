"""What was probably meant by a misspelt name."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """The known name that is most like `word`; "" if none is."""
    return next(iter(get_close_matches(word, list(known), 1, cutoff)), "")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint to end a message with; "" if nothing known is like `word`."""
    meant = nearest(word, known)
    return f"（是不是 {meant}？did you mean {meant}?）" if meant else ""
