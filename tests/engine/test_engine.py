"""The engine's laws under real threads, on a network that costs nothing and checks every use of a cache."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chatglm.engine import Completion, Engine, Handle, engine, request
from chatglm.engine.block_manager import BLOCK_TOKENS
from chatglm.engine.solo import stream_alone
from chatglm.errors import ChatGLMError, InvalidLogitsError, InvalidRequestError, PromptTooLongError, QueueFullError
from chatglm.generation.config import GenerationConfig
from chatglm.generation.deltas import Delta
from tests.engine.counting import (
    BREAKS_AT,
    IS_NAN,
    RAISES,
    BrokenStepError,
    CountingDecoder,
    FailingTokenizer,
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


# --- the law ---


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
        gate.wait_for_step()
        gate.open()
        gate.wait_for_step()
        now = 103.0
        gate.open()
        gate.wait_for_step()
        assert [handle.done for handle in (runs, waits, has_time)] == [False, True, False]
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


# --- what fails ---


def test_a_step_that_fails_ends_only_the_request_it_belongs_to() -> None:
    model = CountingDecoder()
    config = GenerationConfig(seed=3, max_new_tokens=30, min_new_tokens=30)
    prompts = [[1, 2], [3, RAISES], [4], [5, IS_NAN], [6, 7]]
    with running(model) as one:
        handles = [one.submit(prompt, config) for prompt in prompts]
        for n in (0, 2, 4):
            assert list(handles[n]) == alone(prompts[n], config)
        for n, kind in ((1, BrokenStepError), (3, InvalidLogitsError)):
            deltas = []
            with pytest.raises(kind):
                for delta in handles[n]:
                    deltas.append(delta)
            assert (deltas[-1].finish_reason, len(text_of(deltas))) == ("error", BREAKS_AT)
            with pytest.raises(kind):
                handles[n].result(SOON)


def test_a_prompt_that_cannot_be_taken_in_ends_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = CountingDecoder()
    fill = model.fill_caches

    def fill_or_fail(prompts: Any, layouts: Any, caches: Any) -> None:
        if any(40 in prompt for prompt in prompts):
            raise torch.OutOfMemoryError("no room")
        fill(prompts, layouts, caches)

    monkeypatch.setattr(model, "fill_caches", fill_or_fail)
    config = GenerationConfig(seed=3, max_new_tokens=5)
    with running(model) as one:
        good, bad, also_good = (one.submit(prompt, config) for prompt in ([1], [40], [2]))
        assert list(good) == alone([1], config)
        assert list(also_good) == alone([2], config)
        with pytest.raises(ChatGLMError, match="Memory ran out"):
            bad.result(SOON)


def fail(*args: object) -> Any:
    raise KeyError("mine")


def test_a_processor_or_a_flag_that_raises_ends_its_own_request() -> None:
    config = GenerationConfig(seed=3, max_new_tokens=20)
    with running(CountingDecoder()) as one:
        good = one.submit([1], config)
        bad = [one.submit([2], config, processors=[fail]), one.submit([3], config, is_cancelled=fail)]
        assert list(good) == alone([1], config)
        for handle in bad:
            with pytest.raises(KeyError, match="mine"):
                handle.result(SOON)
        assert one.stats().failed == 2


def test_a_tokenizer_that_raises_ends_the_request_whose_id_it_cannot_spell() -> None:
    config = GenerationConfig(do_sample=False, max_new_tokens=8)
    whole = {n: text_of(alone([n], config)) for n in range(1, 30)}
    bad_letter = whole[1][4]
    one = Engine(CountingDecoder(), FailingTokenizer(ord(bad_letter) - ord("A")))
    handles = {n: one.submit([n], config) for n in whole}
    for n, handle in handles.items():
        if bad_letter in whole[n]:
            with pytest.raises(ValueError, match="no such letter"):
                handle.result(SOON)
        else:
            assert handle.result(SOON).text == whole[n]
    assert one.stats().failed == sum(bad_letter in text for text in whole.values())
    one.close()


def test_a_defect_of_the_engine_leaves_nobody_waiting(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = CountingDecoder()
    with running(model, max_running=1) as one:
        with monkeypatch.context() as patch:
            patch.setattr(engine, "next_prompts", fail)
            handles = [one.submit([n + 1], ENDLESS) for n in range(2)]
            for handle in handles:
                with pytest.raises(KeyError):
                    handle.result(SOON)
        assert "step of the engine failed" in caplog.text
        assert one.submit([1], GenerationConfig(max_new_tokens=2, do_sample=False)).result(SOON).text


# --- handles ---


def test_a_handle_can_be_read_again_and_summed_up() -> None:
    config = GenerationConfig(do_sample=False, max_new_tokens=6)
    with running(CountingDecoder()) as one:
        handle = one.submit([7], config, dropped_rounds=2)
        deltas = list(handle)
        assert handle.done
        assert list(handle) == deltas
        assert handle.result() == Completion(text_of(deltas), "length", 1, 6, 2)
        assert [delta.dropped_rounds for delta in deltas] == [2] * len(deltas)


def test_a_result_that_takes_too_long_goes_on() -> None:
    gate = Gate()
    with running(CountingDecoder(on_step=gate)) as one:
        handle = one.submit([7], GenerationConfig(do_sample=False, max_new_tokens=2))
        with pytest.raises(TimeoutError):
            handle.result(0.01)
        gate.open(2)
        assert handle.result(SOON).completion_tokens == 2


def test_nobody_waits_for_a_slow_reader() -> None:
    with running(CountingDecoder()) as one:
        unread = one.submit([1], ENDLESS)
        deltas = iter(unread)
        next(deltas)
        assert one.submit([2], ENDLESS).result(SOON).completion_tokens == 900
        assert len(list(deltas)) + 1 == len(list(unread)) == 901


def test_a_dropped_handle_cancels() -> None:
    with running(CountingDecoder(on_step=lambda: time.sleep(0.001))) as one:
        deltas = iter(one.submit([1], ENDLESS))
        next(deltas)
        del deltas
        gc.collect()
        wait_until(lambda: one.stats().cancelled == 1)


def test_many_handles_in_one_event_loop() -> None:
    config = GenerationConfig(seed=2, max_new_tokens=25)

    async def read(one: Engine, number: int) -> list[Delta]:
        return [delta async for delta in one.submit([number + 1], config)]

    async def read_all(one: Engine) -> list[list[Delta]]:
        return list(await asyncio.gather(*(read(one, number) for number in range(20))))

    async def fail_to_read(one: Engine) -> None:
        async for _ in one.submit([RAISES], config):
            pass

    with running(CountingDecoder()) as one:
        assert asyncio.run(read_all(one)) == [alone([number + 1], config) for number in range(20)]
        with pytest.raises(BrokenStepError):
            asyncio.run(fail_to_read(one))


def test_a_reader_that_is_cancelled_and_a_loop_that_ends_disturb_nobody() -> None:
    async def leave(one: Engine) -> Handle:
        handle = one.submit([1], ENDLESS)

        async def read() -> None:
            async for _ in handle:
                pass

        reader = asyncio.create_task(read())
        await asyncio.sleep(0.01)
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        return handle

    with running(CountingDecoder(on_step=lambda: time.sleep(0.001))) as one:
        handle = asyncio.run(leave(one))
        assert not handle.done
        handle.cancel()
        assert handle.result(SOON).finish_reason == "cancelled"


# --- the thread ---


def test_closing_finishes_what_it_can_within_the_bound_and_cancels_the_rest() -> None:
    model = CountingDecoder(on_step=lambda: time.sleep(0.01))
    one = Engine(model, LetterTokenizer(), max_running=2)
    short = one.submit([1], GenerationConfig(do_sample=False, max_new_tokens=3))
    long, waiting = one.submit([2], ENDLESS), one.submit([3], ENDLESS)
    begun = time.monotonic()
    one.close(timeout=1)
    assert time.monotonic() - begun < SOON
    assert [handle.result(0).finish_reason for handle in (short, long, waiting)] == ["length", "cancelled", "cancelled"]
    with pytest.raises(ChatGLMError, match="closed"):
        one.submit([1], ENDLESS)
    assert one.stats().blocks_free == one.stats().blocks_total
    one.close()


def test_closing_does_not_use_up_a_bound_that_is_not_needed() -> None:
    one = Engine(CountingDecoder(), LetterTokenizer())
    handle = one.submit([1], GenerationConfig(do_sample=False, max_new_tokens=3))
    one.close(timeout=600)
    assert handle.result(0).finish_reason == "length"


def test_closing_while_callers_storm_in_and_cancel() -> None:
    model = CountingDecoder()
    one = Engine(model, LetterTokenizer(), max_running=3, max_waiting=5)

    def storm(number: int) -> set[str | None]:
        seen: set[str | None] = set()
        for turn in range(50):
            try:
                handle = one.submit([number + 1, turn % 40 + 1], ENDLESS)
            except QueueFullError:
                continue
            except ChatGLMError:
                break
            if turn % 3:
                handle.cancel()
                seen.add(handle.result(SOON).finish_reason)
        return seen

    with ThreadPoolExecutor(8) as pool:
        storms = [pool.submit(storm, number) for number in range(8)]
        time.sleep(0.1)
        one.close()
        assert all(storm.result(SOON) <= {"cancelled"} for storm in storms)
    stats = one.stats()
    assert (stats.running, stats.waiting, stats.slots_used) == (0, 0, 0)
    assert stats.blocks_free == stats.blocks_total


def test_two_thousand_mixed_requests_leave_nothing_behind() -> None:
    """A tenth leaves early, a tenth breaks, a tenth cannot be taken at all."""
    model = CountingDecoder(context=200)
    config = GenerationConfig(seed=5, max_new_tokens=6)

    def call(number: int) -> str | None:
        prompt = {1: [3, RAISES], 2: [1] * 200}.get(number % 10, [number % 37 + 1, 2])
        try:
            handle = one.submit(prompt, config)
            if number % 10 == 0:
                handle.cancel()
            return handle.result(SOON).finish_reason
        except (BrokenStepError, PromptTooLongError) as error:
            return type(error).__name__

    with running(model, max_running=8, max_waiting=8, memory_limit=600) as one, ThreadPoolExecutor(16) as pool:
        ends = list(pool.map(call, range(2000)))
        stats = one.stats()
    assert (ends.count("BrokenStepError"), ends.count("PromptTooLongError")) == (200, 200)
    assert set(ends[::10]) <= {"cancelled", "stop", "length"}
    assert (stats.finished, stats.failed) == (1600 - stats.cancelled, 200)
    assert model.most_positions <= 600


def engine_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "chatglm-engine"}


def test_the_thread_comes_with_work_and_goes_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "IDLE_SECONDS", 0.05)
    before = engine_threads()
    one = Engine(CountingDecoder(), LetterTokenizer())
    assert engine_threads() == before
    for _ in range(3):
        assert one.submit([1], GenerationConfig(max_new_tokens=3, do_sample=False)).result(SOON).completion_tokens == 3
        wait_until(lambda: engine_threads() == before)
