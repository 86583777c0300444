"""A pipeline for pages: its answer is the question, and whoever tests it decides when it goes on."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

from chatglm.generation.deltas import Delta
from chatglm.messages import Message
from tests.ui.fake_pipeline import FakeHandle

PAUSE = "⏸"


class EchoPipeline:
    """Answers with the question, line by line; at each `PAUSE` it waits for `go_on`.

    Attributes:
        options: parameters of the latest request.
    """

    name, precision, is_demo, context_limit = "echo", "fp32 on cpu", False, 1024
    defaults = {"max_length": 1024, "temperature": 0.9, "top_p": 0.7, "top_k": 50}

    def __init__(self) -> None:
        self._permits = threading.Semaphore(0)
        self.options: dict[str, Any] = {}

    def go_on(self) -> None:
        self._permits.release()

    def submit(self, messages: Sequence[Message], *, cancel: threading.Event, **options: Any) -> FakeHandle:
        self.options = options
        return FakeHandle(self._answer(messages[-1].content, cancel))

    def has_room(self, messages: Sequence[Message], answer_start: str) -> bool:
        return len(answer_start) < self.context_limit

    def _answer(self, question: str, cancel: threading.Event) -> Iterator[Delta]:
        num_tokens = 0
        for number, piece in enumerate(question.split(PAUSE)):
            while number and not self._permits.acquire(timeout=0.02):
                if cancel.is_set():
                    return
            for line in piece.splitlines(keepends=True):
                num_tokens += 1
                yield Delta(line, None, 5, num_tokens)
        yield Delta("", "stop", 5, num_tokens)
