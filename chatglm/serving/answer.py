"""One admitted request as a door reads it: its deltas, counted as they pass, and a way to end it.

Knows: which ends are answers and which are errors. Does not know HTTP.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from dataclasses import dataclass, field

from chatglm.engine import Handle
from chatglm.generation.deltas import Delta
from chatglm.serving.errors import CancelledError, DeadlineError
from chatglm.serving.metrics import Metrics

CANCELLED = "The answer was cancelled before it was complete."


@dataclass
class Whole:
    """An answer so far, and all of it in the end: the fold of its deltas."""

    parts: list[str] = field(default_factory=list)
    last: Delta = field(default_factory=lambda: Delta(""))

    def add(self, delta: Delta) -> None:
        """Take one more delta."""
        self.parts.append(delta.text)
        self.last = delta

    @property
    def text(self) -> str:
        """Everything until now."""
        return "".join(self.parts)

    @property
    def usage(self) -> dict[str, int]:
        """Tokens, counted as OpenAI does."""
        prompt, completion = self.last.prompt_tokens, self.last.completion_tokens
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}

    def require_complete(self) -> None:
        """Refuse an answer that somebody else than the model or a limit of the request has ended.

        Raises:
            DeadlineError, CancelledError: saying what ended it.
        """
        if self.last.finish_reason == "deadline":
            raise DeadlineError("The answer took longer than this server allows.", "Ask for fewer tokens.")
        if self.last.finish_reason == "cancelled":
            raise CancelledError(CANCELLED)


class Answer:
    """Iterate it once, with `for` or `async for`; leaving the iteration early ends the request.

    The error of a failed request is raised after its last delta.
    """

    def __init__(self, handle: Handle, metrics: Metrics) -> None:
        self._handle = handle
        self._watch = metrics.watch()

    def __iter__(self) -> Generator[Delta, None, None]:
        try:
            for delta in self._handle:
                self._watch.see(delta)
                yield delta
        finally:
            self.cancel()

    async def __aiter__(self) -> AsyncGenerator[Delta, None]:
        try:
            async for delta in self._handle:
                self._watch.see(delta)
                yield delta
        finally:
            self.cancel()

    def cancel(self) -> None:
        """End it within one token; nothing happens if it has ended."""
        self._handle.cancel()
        self._watch.leave()
