"""Stop strings in a stream of text."""

from __future__ import annotations

from collections.abc import Sequence

from chatglm.errors import InvalidRequestError
from chatglm.generation.text import start_of_tail


class StopFinder:
    """Cuts the text before the first stop string; `stopped` once certain. InvalidRequestError if one is empty."""

    def __init__(self, stop_strings: Sequence[str]) -> None:
        if not all(stop_strings):
            raise InvalidRequestError("A stop string is empty.", "Leave it out, or give at least one character.")
        self._stop_strings = tuple(stop_strings)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        if self.stopped or not self._stop_strings:
            return "" if self.stopped else text
        text = self._held + text
        cut = self._find(text)
        start = start_of_tail(text, self._stop_strings)
        if cut < len(text) and cut <= start:
            self.stopped = True
            return text[:cut]
        # A longer stop string that begins before the one already found has to be waited for.
        self._held = text[start:]
        return text[:start]

    def finish(self) -> str:
        if self.stopped:
            return ""
        rest, self._held = self._held, ""
        cut = self._find(rest)
        self.stopped = cut < len(rest)
        return rest[:cut]

    def _find(self, text: str) -> int:
        return min((place for stop in self._stop_strings if (place := text.find(stop)) >= 0), default=len(text))
