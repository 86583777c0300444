"""What fails, who reads, and how the engine's thread comes and goes."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from chatglm.engine import Completion, Engine, Handle, engine
from chatglm.errors import ChatGLMError, InvalidLogitsError, PromptTooLongError, QueueFullError
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
from tests.engine.threads import (
    ENDLESS,
    SOON,
    Gate,
    alone,
    running,
    text_of,
    wait_until,
)

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


def test_an_internal_error_leaves_no_caller_waiting(
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
        assert handle.result() == Completion(text_of(deltas), "length", 1, 6, 2, 0)
        assert [delta.dropped_rounds for delta in deltas] == [2] * len(deltas)


def test_a_result_that_takes_too_long_goes_on() -> None:
    gate = Gate()
    with running(CountingDecoder(on_step=gate)) as one:
        handle = one.submit([7], GenerationConfig(do_sample=False, max_new_tokens=2))
        with pytest.raises(TimeoutError):
            handle.result(0.01)
        gate.open(2)
        assert handle.result(SOON).completion_tokens == 2


def test_no_step_waits_for_a_slow_reader() -> None:
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


def test_a_reader_that_is_cancelled_and_a_loop_that_ends_disturb_no_other() -> None:
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


@pytest.mark.slow
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
