"""The object every interface holds: streaming, threads, asyncio, cancelling, closing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from chatglm.errors import ChatGLMError, InvalidRequestError, ModelNotFoundError
from chatglm.generation.deltas import Delta
from chatglm.loading import load
from chatglm.pipeline import Pipeline, load_pipeline
from tests.folders import make_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    make_folder(folder, "bin_shards", dtype=torch.float32, max_sequence_length=600)
    return folder


@pytest.fixture(scope="module")
def pipe(folder: Path) -> Iterator[Pipeline]:
    with load_pipeline(folder) as pipeline:
        yield pipeline


def test_stream_and_chat_agree(pipe: Pipeline) -> None:
    deltas = list(pipe.stream("hello", max_new_tokens=30, temperature=0))
    response, history = pipe.chat("hello", max_new_tokens=30, temperature=0)
    assert "".join(delta.text for delta in deltas) == response
    assert history == [("hello", response)]
    assert deltas[-1].finish_reason in ("stop", "length")
    assert not pipe.is_demo


def test_the_model_of_transformers_answers_as_the_pipeline(pipe: Pipeline, folder: Path) -> None:
    wrapped = load(folder)
    for options in ({"temperature": 0}, {"seed": 3, "temperature": 2.0, "top_k": 0}):
        asked = {"max_new_tokens": 30, **options}
        assert wrapped.model.chat(wrapped.tokenizer, "hello", **asked) == pipe.chat("hello", **asked)


def test_generate_continues_text_without_rounds(pipe: Pipeline) -> None:
    assert pipe.generate("hello", max_new_tokens=9, seed=1) == pipe.chat("hello", max_new_tokens=9, seed=1)[0]
    with pytest.raises(InvalidRequestError, match="string"):
        pipe.generate(b"hello")  # type: ignore[arg-type]


def test_half_a_surrogate_pair_is_answered_as_an_unknown_character(pipe: Pipeline, folder: Path) -> None:
    wrapped = load(folder)
    how = {"max_new_tokens": 9, "temperature": 0}

    def answers(half: str) -> list[str]:
        query, past, more = f"a{half}", [(half, f"b{half}")], {"system": half, "stop": half, **how}
        *_, streamed = wrapped.model.stream_chat(wrapped.tokenizer, query, past, **more)
        return [
            pipe.chat(query, past, answer_start=f"c{half}", **more)[0],
            pipe.generate(query, **how),
            wrapped.model.chat(wrapped.tokenizer, query, past, **more)[0],
            streamed[0],
        ]

    assert answers("\ud83d") == answers("\ufffd")


def test_system_prompt_changes_the_prompt(pipe: Pipeline) -> None:
    plain = list(pipe.stream("hello", max_new_tokens=1))[-1].prompt_tokens
    assert list(pipe.stream("hello", system="the quick brown fox", max_new_tokens=1))[-1].prompt_tokens > plain


def test_threads_take_turns_and_get_their_own_answers(pipe: Pipeline) -> None:
    """Requests that run at the same time, greedy and seeded, equal the same requests run alone."""
    requests = [{"query": f"hello {i}", "max_new_tokens": 20, "seed": i, "do_sample": i % 2 == 0} for i in range(8)]
    alone = [pipe.chat(**request) for request in requests]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda request: pipe.chat(**request), requests)) == alone


def test_cancel_from_another_thread(pipe: Pipeline) -> None:
    """The answer ends within one token of the flag, and the next request works."""
    cancel, first = threading.Event(), threading.Event()
    deltas: list[Delta] = []

    def consume() -> None:
        for delta in pipe.stream("hello", cancel=cancel, max_new_tokens=590, min_new_tokens=590, seed=0):
            deltas.append(delta)
            first.set()

    worker = threading.Thread(target=consume)
    worker.start()
    assert first.wait(60)
    cancel.set()
    worker.join(60)
    assert deltas[-1].finish_reason == "cancelled"
    assert deltas[-1].completion_tokens < 590
    assert pipe.chat("hello", max_new_tokens=3, min_new_tokens=3)


def test_an_abandoned_stream_blocks_nobody(pipe: Pipeline) -> None:
    abandoned = pipe.stream("hello", max_new_tokens=50)
    next(abandoned)
    assert pipe.chat("hello", max_new_tokens=3) is not None
    abandoned.close()  # type: ignore[attr-defined]


def test_astream_equals_stream_and_leaving_cancels(pipe: Pipeline) -> None:
    async def collect() -> str:
        return "".join([delta.text async for delta in pipe.astream("hello", max_new_tokens=20, temperature=0)])

    async def leave() -> bool:
        cancel = threading.Event()
        deltas = pipe.astream("hello", cancel=cancel, max_new_tokens=590, min_new_tokens=590)
        async for _ in deltas:
            break
        await deltas.aclose()  # type: ignore[attr-defined]
        return cancel.is_set()

    async def bad() -> None:
        async for _ in pipe.astream("hello", top_p=9):
            pass

    assert asyncio.run(collect()) == pipe.chat("hello", max_new_tokens=20, temperature=0)[0]
    assert asyncio.run(leave())
    with pytest.raises(InvalidRequestError, match="top_p"):
        asyncio.run(bad())


def test_a_closed_pipeline_says_so(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("closed")
    make_folder(folder)
    pipeline = load_pipeline(folder)
    pipeline.close()
    with pytest.raises(ChatGLMError, match="closed"):
        pipeline.stream("hello")


def test_loading_errors_are_sentences(tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(ModelNotFoundError, match="no-such-folder"):
        load_pipeline(tmp_path_factory.mktemp("x") / "no-such-folder")
    folder = tmp_path_factory.mktemp("y")
    make_folder(folder)
    with pytest.raises(InvalidRequestError, match="4 or 8 bits, not 5"):
        load_pipeline(folder, quantize=5)
