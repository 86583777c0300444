"""A pipeline that echoes questions, so that tests of a session need no model."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from chatglm.errors import InvalidLogitsError
from chatglm.generation.deltas import Delta
from chatglm.messages import Message


class FakeHandle:
    """Deltas of a request that never waits for another."""

    queue_place = 0

    def __init__(self, deltas: Iterator[Delta]) -> None:
        self._deltas = deltas

    def __iter__(self) -> Iterator[Delta]:
        return self._deltas


class FakePipeline:
    """Echoes the question letter by letter; "broken", "nothing", "long" and "old" have a meaning of their own.

    Args:
        presses: question -> (letters until Ctrl+C is pressed, how often it is).

    Attributes:
        calls: (texts of the messages, parameters) of each request.
    """

    name, is_demo, precision, context_limit = "fake", False, "fp32 on cpu", 2048
    defaults: dict[str, Any] = {}

    def __init__(self, presses: dict[str, tuple[int, int]] | None = None) -> None:
        self.calls: list[tuple[list[str], dict[str, Any]]] = []
        self.presses = presses or {}

    def submit(self, messages: Sequence[Message], *, cancel: threading.Event, **options: Any) -> FakeHandle:
        self.calls.append(([message.content for message in messages], options))
        question = messages[-1].content.removeprefix(options.get("answer_start", ""))
        return FakeHandle(self._answer(question, cancel))

    def has_room(self, messages: Sequence[Message], answer_start: str) -> bool:
        return len(answer_start) < self.context_limit

    def _answer(self, question: str, cancel: threading.Event) -> Iterator[Delta]:
        if question == "broken":
            yield Delta("half", None, 5, 1)
            raise InvalidLogitsError("The network produced NaN.")
        num_letters, num_presses = self.presses.get(question, (-1, 0))
        for number, letter in enumerate("" if question == "nothing" else question):
            for _ in range(num_presses if number == num_letters else 0):
                os.kill(os.getpid(), signal.SIGINT)
            if cancel.is_set():
                yield Delta("", "cancelled", 5, number)
                return
            yield Delta(letter, None, 5, number + 1)
        num_tokens = 0 if question == "nothing" else len(question)
        yield Delta("", "length" if question == "long" else "stop", 5, num_tokens, 2 if question == "old" else 0)
