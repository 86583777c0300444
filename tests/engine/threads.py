"""Engines under real threads: one that must be idle at the end, a gate for its steps, callers that leave."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from chatglm.engine import Engine
from chatglm.engine.solo import stream_alone
from chatglm.errors import ChatGLMError
from chatglm.generation.config import GenerationConfig
from chatglm.generation.deltas import Delta
from tests.engine.counting import (
    IS_NAN,
    RAISES,
    CountingDecoder,
    LetterTokenizer,
)

ENDLESS = GenerationConfig(do_sample=False, max_new_tokens=900, min_new_tokens=900)
SOON = 30.0  # seconds: far more than anything here takes, so that a hang is a failure and not a wait


@contextmanager
def running(model: CountingDecoder, **limits: Any) -> Iterator[Engine]:
    """An engine that is idle, with nothing reserved or remembered, when the block ends."""
    one = Engine(model, LetterTokenizer(), **limits)
    try:
        yield one
        wait_until(lambda: one.stats().running == one.stats().waiting == 0)
        stats = one.stats()
        assert stats.slots_used == 0
        assert stats.blocks_free == stats.blocks_total
    finally:
        one.close()
    if model.live:
        gc.collect()
    assert not model.live


class Gate:
    """Lets a network make one step at a time."""

    def __init__(self) -> None:
        self._allowed, self._waiting = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self) -> None:
        self._waiting.release()
        assert self._allowed.acquire(timeout=SOON)

    def wait_for_step(self) -> None:
        """Until the network stands at its next step."""
        assert self._waiting.acquire(timeout=SOON)

    def open(self, num_steps: int = 1) -> None:
        for _ in range(num_steps):
            self._allowed.release()


def wait_until(is_true: Callable[[], bool]) -> None:
    give_up = time.monotonic() + SOON
    while not is_true():
        assert time.monotonic() < give_up
        time.sleep(0.001)


def text_of(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


def alone(prompt: list[int], config: GenerationConfig) -> list[Delta]:
    return list(stream_alone(CountingDecoder(), LetterTokenizer(), prompt, config))


@dataclass
class Asked:
    """A request of a test, and when its caller loses interest."""

    prompt: list[int]
    config: GenerationConfig
    leaves_after: int | None
    pause: int


configs = st.builds(
    GenerationConfig,
    do_sample=st.booleans(),
    seed=st.integers(0, 3),
    temperature=st.sampled_from([0.7, 2.0]),
    max_new_tokens=st.integers(1, 25),
    min_new_tokens=st.integers(0, 8),
    repetition_penalty=st.sampled_from([1.0, 1.5]),
    stop=st.sampled_from([(), ("Q",), ("CD", "E")]),
)
requests = st.builds(
    Asked,
    prompt=st.lists(st.integers(1, 40), min_size=1, max_size=90)
    | st.tuples(st.integers(1, 9), st.sampled_from([RAISES, IS_NAN])).map(list),
    config=configs,
    leaves_after=st.none() | st.integers(0, 12),
    pause=st.integers(0, 2),
)


Answer = tuple[list[Delta], type | None]


def read(deltas: Iterator[Delta], leave: Callable[[int], None] = lambda num_read: None) -> Answer:
    """All deltas, and the kind of error they end with."""
    seen: list[Delta] = []
    try:
        for delta in deltas:
            seen.append(delta)
            leave(len(seen))
    except ChatGLMError as error:
        return seen, type(error)
    return seen, None


def ask(one: Engine, asked: Asked) -> Answer:
    time.sleep(asked.pause * 0.001)
    handle = one.submit(asked.prompt, asked.config)

    def leave(num_read: int) -> None:
        if num_read == asked.leaves_after:
            handle.cancel()

    return read(iter(handle), leave)


def check_answer(asked: Asked, answer: Answer) -> None:
    """One end, and what the request would have got alone: all of it, or the beginning if its caller has left."""
    deltas, error = answer
    whole, alone_error = read(stream_alone(CountingDecoder(), LetterTokenizer(), asked.prompt, asked.config))
    assert [delta.finish_reason is None for delta in deltas] == [True] * (len(deltas) - 1) + [False]
    if deltas[-1].finish_reason == "cancelled":
        assert asked.leaves_after is not None
        assert text_of(whole).startswith(text_of(deltas))
    else:
        assert error is alone_error
        assert deltas == whole
