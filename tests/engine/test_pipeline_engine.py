"""Every way to ask a pipeline goes through its engine."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest
import torch

from chatglm.errors import ChatGLMError, InvalidRequestError, QueueFullError
from chatglm.messages import to_messages
from chatglm.pipeline import Pipeline, load_pipeline
from tests.folders import make_folder

SOON = 60.0
HELLO = to_messages("hello", [])
ENDLESS = {"max_new_tokens": 500, "min_new_tokens": 500, "seed": 0}


@pytest.fixture
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    folder = tmp_path_factory.mktemp("tiny")
    make_folder(folder, "safetensors", dtype=torch.float32, max_sequence_length=600)
    with load_pipeline(folder) as pipeline:
        yield pipeline


def test_all_ways_to_ask_are_one(pipe: Pipeline) -> None:
    options = {"max_new_tokens": 12, "seed": 4}
    whole = pipe.submit(to_messages("hello", [("a", "b")], "be brief"), **options).result(SOON)
    deltas = list(pipe.stream("hello", [("a", "b")], system="be brief", **options))

    async def collect() -> str:
        return "".join([d.text async for d in pipe.astream("hello", [("a", "b")], system="be brief", **options)])

    assert whole.text == "".join(delta.text for delta in deltas) == asyncio.run(collect())
    assert whole.text == pipe.chat("hello", [("a", "b")], system="be brief", **options)[0]
    assert (whole.prompt_tokens, whole.completion_tokens) == (deltas[-1].prompt_tokens, deltas[-1].completion_tokens)
    stats = pipe.engine.stats()
    assert (stats.finished, stats.slots_used, stats.blocks_free) == (4, 0, stats.blocks_total)
    assert stats.tokens_total == 4 * whole.completion_tokens
    assert stats.prompt_tokens_total == 4 * whole.prompt_tokens


def test_dropped_rounds_and_deadlines_pass_through(pipe: Pipeline) -> None:
    history = [("hello " * 40, "world " * 40)] * 20
    result = pipe.submit(to_messages("hello", history), max_new_tokens=2).result(SOON)
    assert result.dropped_rounds > 0
    assert pipe.submit(HELLO, deadline=0).result(SOON).finish_reason == "deadline"
    assert list(pipe.stream("hello", deadline=0))[-1].finish_reason == "deadline"


def test_limits_of_ones_own(pipe: Pipeline) -> None:
    engine = pipe.start_engine(max_running=1, max_waiting=1)
    assert engine is pipe.engine
    cancel = threading.Event()
    deltas = pipe.stream("hello", cancel=cancel, **ENDLESS)
    waiting = pipe.submit(HELLO, **ENDLESS)
    with pytest.raises(QueueFullError, match="1 requests run and 1 wait"):
        pipe.stream("hello")
    with pytest.raises(InvalidRequestError, match="already"):
        pipe.start_engine()
    cancel.set()
    assert list(deltas)[-1].finish_reason == "cancelled"
    waiting.cancel()
    assert waiting.result(SOON).finish_reason == "cancelled"


def test_leaving_a_stream_cancels(pipe: Pipeline) -> None:
    for _ in pipe.stream("hello", **ENDLESS):
        break
    never_read = pipe.stream("hello", **ENDLESS)
    del never_read
    assert pipe.submit(HELLO, max_new_tokens=3, min_new_tokens=3).result(SOON).completion_tokens == 3

    async def leave() -> None:
        deltas = pipe.astream("hello", **ENDLESS)
        await anext(deltas)
        await deltas.aclose()  # type: ignore[attr-defined]

    asyncio.run(leave())
    pipe.engine.close(SOON)
    assert pipe.engine.stats().cancelled == 3


def test_closing_ends_what_is_being_answered(pipe: Pipeline) -> None:
    handle = pipe.submit(HELLO, **ENDLESS)
    next(iter(handle))
    pipe.close()
    assert handle.result(0).finish_reason == "cancelled"
    with pytest.raises(ChatGLMError, match="closed"):
        pipe.submit(HELLO)
    for ask in (pipe.stream, pipe.chat, pipe.generate, pipe.complete):
        with pytest.raises(ChatGLMError, match="closed"):
            ask("hello")
    with pytest.raises(ChatGLMError, match="closed"):
        pipe.start_engine()
    pipe.close()
