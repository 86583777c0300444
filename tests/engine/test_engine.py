"""The engine's laws under real threads, on a network that costs nothing and checks every use of a cache."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatglm.engine import Engine, Handle, request
from chatglm.engine.block_manager import BLOCK_TOKENS
from chatglm.errors import InvalidRequestError, PromptTooLongError, QueueFullError
from chatglm.generation.config import GenerationConfig
from tests.engine.counting import (
    CountingDecoder,
    LetterTokenizer,
)
from tests.engine.threads import (
    ENDLESS,
    SOON,
    Asked,
    Gate,
    alone,
    ask,
    check_answer,
    requests,
    running,
    wait_until,
)


@given(asked=st.lists(requests, max_size=10), max_running=st.integers(1, 6), num_blocks=st.integers(3, 12))
@settings(max_examples=40, deadline=None)
def test_every_request_gets_what_it_would_get_alone(asked: list[Asked], max_running: int, num_blocks: int) -> None:
    model = CountingDecoder(context=3 * BLOCK_TOKENS)
    limits = {"max_running": max_running, "max_waiting": 10, "memory_limit": num_blocks * BLOCK_TOKENS}
    with running(model, **limits) as one, ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda each: ask(one, each), asked))
        stats = one.stats()
    for each, answer in zip(asked, answers, strict=True):
        check_answer(each, answer)
    reasons = [deltas[-1].finish_reason for deltas, _ in answers]
    assert stats.finished == reasons.count("stop") + reasons.count("length")
    assert (stats.cancelled, stats.failed) == (reasons.count("cancelled"), reasons.count("error"))
    assert stats.tokens_total == sum(deltas[-1].completion_tokens for deltas, _ in answers)
    assert model.most_positions <= num_blocks * BLOCK_TOKENS
    assert max(model.batches, default=0) <= max_running


# --- steps ---


def test_requests_join_and_leave_between_steps() -> None:
    gate = Gate()
    model = CountingDecoder(on_step=gate)
    short, long = GenerationConfig(max_new_tokens=2, seed=0), GenerationConfig(max_new_tokens=5, seed=0)
    with running(model) as one:
        first = one.submit([1, 2], long)
        gate.wait_for_step()
        second, third = one.submit([3], short), one.submit([4], long)
        gate.open(10)
        for handle in (first, second, third):
            handle.result(SOON)
    assert model.batches == [1, 3, 3, 2, 2, 1]
    assert model.prompts == [2, 2], "new requests share one pass"


def test_running_requests_make_a_step_between_two_long_prompts() -> None:
    gate = Gate()
    model = CountingDecoder(on_step=gate)
    with running(model) as one:
        handles = [one.submit([1] * 200, GenerationConfig(max_new_tokens=4, do_sample=False)) for _ in range(4)]
        gate.open(10)
        for handle in handles:
            handle.result(SOON)
    assert model.prompts == [200] * 4
    assert model.batches == [1, 2, 3, 4, 3, 2, 1]


@pytest.mark.parametrize("position", [0, 1, 2])
def test_cancel_frees_within_one_step(position: int) -> None:
    gate = Gate()
    model = CountingDecoder(on_step=gate)
    with running(model, max_running=2, max_waiting=5) as one:
        handles = [one.submit([n + 1], ENDLESS) for n in range(3)]
        wait_until(lambda: one.stats().waiting == 1)
        gate.wait_for_step()
        handles[position].cancel()
        gate.open()
        gate.wait_for_step()
        assert handles[position].done
        assert (one.stats().running, one.stats().waiting, one.stats().cancelled) == (2, 0, 1)
        assert len(model.live) <= 2
        last = handles[position].result(SOON)
        assert last.finish_reason == "cancelled"
        assert last.completion_tokens <= 1
        for handle in handles:
            handle.cancel()
        gate.open(3)


def test_the_deadline_ends_those_who_run_and_those_who_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(request, "monotonic", lambda: now)
    gate = Gate()
    with running(CountingDecoder(on_step=gate), max_running=1) as one:
        runs, waits, has_time = (one.submit([1], ENDLESS, deadline=deadline) for deadline in (5, 3, 60))
        assert [handle.queue_place for handle in (runs, waits, has_time)] == [0, 1, 2]
        gate.wait_for_step()
        gate.open()
        gate.wait_for_step()
        now = 103.0
        gate.open()
        gate.wait_for_step()
        assert [handle.done for handle in (runs, waits, has_time)] == [False, True, False]
        assert [handle.queue_place for handle in (runs, waits, has_time)] == [0, 0, 1]
        now = 105.0
        gate.open()
        gate.wait_for_step()
        results = [handle.result(0) for handle in (runs, waits)]
        assert [result.finish_reason for result in results] == ["deadline"] * 2
        assert [len(result.text) for result in results] == [3, 0]
        assert one.stats().expired == 2
        has_time.cancel()
        gate.open()


def test_no_time_at_all_is_no_step() -> None:
    model = CountingDecoder()
    with running(model) as one:
        result = one.submit([1], ENDLESS, deadline=0).result(SOON)
        assert (result.text, result.finish_reason, result.completion_tokens) == ("", "deadline", 0)
    assert not model.batches


def test_a_request_of_one_token_and_one_that_ends_at_once() -> None:
    with running(CountingDecoder()) as one:
        assert one.submit([1], GenerationConfig(max_new_tokens=1)).result(SOON).completion_tokens == 1
        ended = one.submit([1], GenerationConfig(do_sample=False, eos_token_id=alone_first_id([1]))).result(SOON)
        assert (ended.text, ended.finish_reason, ended.completion_tokens) == ("", "stop", 0)


def alone_first_id(prompt: list[int]) -> int:
    return ord(alone(prompt, GenerationConfig(do_sample=False, max_new_tokens=1))[0].text) - ord("A")


# --- what is refused ---


def test_what_is_wrong_is_said_at_once() -> None:
    with running(CountingDecoder(context=50)) as one:
        with pytest.raises(PromptTooLongError):
            one.submit([1] * 50, ENDLESS)
        for deadline in (-1, float("nan"), float("inf")):
            with pytest.raises(InvalidRequestError, match="deadline"):
                one.submit([1], ENDLESS, deadline=deadline)
    for bounds in ({"max_running": 0}, {"max_waiting": -1}):
        with pytest.raises(InvalidRequestError, match="bounds"):
            Engine(CountingDecoder(), LetterTokenizer(), **bounds)
    with pytest.raises(InvalidRequestError, match="memory"):
        Engine(CountingDecoder(), LetterTokenizer(), memory_limit=3)


def test_the_surplus_is_refused_at_once_and_the_rest_is_right() -> None:
    """A hundred callers at the same moment, ten slots, twenty places in the queue."""
    release = threading.Event()
    model = CountingDecoder(on_step=lambda: release.wait(SOON))
    config = GenerationConfig(seed=1, max_new_tokens=20)
    start = threading.Barrier(100)

    def call(number: int) -> Handle | None:
        start.wait(SOON)
        try:
            return one.submit([number % 40 + 1, 5], config)
        except QueueFullError:
            return None

    with running(model, max_running=10, max_waiting=20) as one, ThreadPoolExecutor(100) as pool:
        handles = list(pool.map(call, range(100)))
        assert sum(handle is not None for handle in handles) == 30
        assert one.stats().refused == 70
        release.set()
        for number, handle in enumerate(handles):
            if handle is not None:
                assert list(handle) == alone([number % 40 + 1, 5], config)


def test_a_request_behind_a_big_one_waits_for_its_turn() -> None:
    """The small one would fit beside the running one, but the big one came first."""
    gate = Gate()
    model = CountingDecoder(on_step=gate)
    with running(model, memory_limit=4 * BLOCK_TOKENS) as one:
        sizes = [2, 3, 1]
        handles = [
            one.submit([n + 1], GenerationConfig(max_length=size * BLOCK_TOKENS, max_new_tokens=None, min_length=9999))
            for n, size in enumerate(sizes)
        ]
        gate.wait_for_step()
        assert (one.stats().running, one.stats().waiting, one.stats().blocks_free) == (1, 2, 2)
        handles[0].cancel()
        gate.open()
        gate.wait_for_step()
        assert (one.stats().running, one.stats().waiting, one.stats().blocks_free) == (2, 0, 0)
        for handle in handles:
            handle.cancel()
        gate.open(2)
