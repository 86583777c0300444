"""Who runs and who waits, without threads: order, bounds, and that everything is given back."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatglm.engine.block_manager import BLOCK_TOKENS, BlockManager, blocks_for, count_blocks
from chatglm.engine.request import Request
from chatglm.engine.runner import next_prompts
from chatglm.engine.scheduler import Scheduler
from chatglm.errors import InvalidRequestError, QueueFullError
from chatglm.generation.config import GenerationConfig
from tests.engine.counting import CountingDecoder, LetterTokenizer

NUM_BLOCKS = 10


def request(num_blocks: int = 1, num_prompt: int = 2) -> Request:
    length = num_blocks * BLOCK_TOKENS
    return Request(CountingDecoder(), LetterTokenizer(), [1] * num_prompt, GenerationConfig(max_length=length))


@given(
    max_running=st.integers(1, 4),
    max_waiting=st.integers(0, 4),
    events=st.lists(st.one_of(st.integers(1, NUM_BLOCKS), st.floats(0, 0.999)), max_size=40),
)
@settings(max_examples=100, deadline=None)
def test_first_come_first_served_within_every_bound(
    max_running: int, max_waiting: int, events: list[int | float]
) -> None:
    """An integer is a request of so many blocks; a fraction one of those present, who leaves something to reuse."""
    scheduler = Scheduler(BlockManager(NUM_BLOCKS), max_running, max_waiting)
    present: list[Request] = []
    kept: list[float] = []  # least recently used first
    for event in events:
        if isinstance(event, int):
            request_ = request(event)
            try:
                scheduler.add(request_)
                present.append(request_)
            except QueueFullError:
                assert len(scheduler.waiting) == max_waiting
        elif present:
            scheduler.remove(present.pop(int(event * len(present))))
            if event not in kept and scheduler.blocks.keep(event, BLOCK_TOKENS + 1, lambda: kept.pop(0)):
                kept.append(event)
            elif event in kept:
                scheduler.blocks.touch(event)
                kept.append(kept.pop(kept.index(event)))
        running = list(scheduler.running)
        assert [*running, *scheduler.waiting] == present, "none overtakes, none is lost"
        assert len(running) <= max_running
        assert len(scheduler.waiting) <= max_waiting
        used = sum(blocks_for(one.num_positions) for one in running)
        assert scheduler.blocks.free == NUM_BLOCKS - used >= 0
        assert 2 * len(kept) <= scheduler.blocks.free, "what is kept lies in free blocks"
        if scheduler.waiting and len(running) < max_running:
            assert blocks_for(scheduler.waiting[0].num_positions) > scheduler.blocks.free, "none waits without need"
    for one in present:
        scheduler.remove(one)
    assert scheduler.is_empty
    assert scheduler.blocks.free == NUM_BLOCKS


def test_what_can_never_fit_is_refused_with_numbers() -> None:
    scheduler = Scheduler(BlockManager(2), 4, 4)
    with pytest.raises(InvalidRequestError, match=f"{3 * BLOCK_TOKENS} tokens.* {2 * BLOCK_TOKENS}"):
        scheduler.add(request(3))
    assert scheduler.is_empty


def test_a_full_queue_says_how_full() -> None:
    scheduler = Scheduler(BlockManager(NUM_BLOCKS), 1, 2)
    for _ in range(3):
        scheduler.add(request())
    with pytest.raises(QueueFullError, match="1 requests run and 2 wait"):
        scheduler.add(request())


@pytest.mark.parametrize(("num_positions", "num_blocks"), [(1, 1), (BLOCK_TOKENS, 1), (BLOCK_TOKENS + 1, 2)])
def test_a_begun_block_is_a_whole_one(num_positions: int, num_blocks: int) -> None:
    assert blocks_for(num_positions) == num_blocks


def test_blocks_come_from_the_memory_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = SimpleNamespace(
        spec=SimpleNamespace(context_limit=1000), position_bytes=10, cache_positions=lambda n: n, device="cpu"
    )
    context = blocks_for(1000)
    block_bytes = BLOCK_TOKENS * 10
    assert count_blocks(model, 5 * block_bytes + 1, 4) == 5
    assert count_blocks(model, 10**9, 4) == 4 * context, "more than all can use is not reserved"
    with pytest.raises(InvalidRequestError, match=r"no room.*Give at least"):
        count_blocks(model, block_bytes - 1, 4)
    monkeypatch.setattr("chatglm.engine.block_manager.available_memory", lambda device: None)
    assert count_blocks(model, None, 4) == 4 * context
    monkeypatch.setattr("chatglm.engine.block_manager.available_memory", lambda device: 1000)
    assert count_blocks(model, None, 4) == context, "one conversation runs on any machine"
    monkeypatch.setattr("chatglm.engine.block_manager.available_memory", lambda device: 4 * context * block_bytes)
    assert context < count_blocks(model, None, 4) < 4 * context


@given(st.lists(st.tuples(st.integers(1, 400), st.booleans()), max_size=12), st.integers(0, 600))
@settings(deadline=None)
def test_prompts_share_a_call_up_to_a_bound_in_order(prompts: list[tuple[int, bool]], at_once: int) -> None:
    """A pair is the length of a prompt and whether it has been taken in already."""
    requests = [request(10, length) for length, _ in prompts]
    for one, (_, is_filled) in zip(requests, prompts, strict=True):
        one.cache = object() if is_filled else None
    fresh = [one for one in requests if one.cache is None]
    chosen = next_prompts(requests, at_once)
    assert chosen == fresh[: len(chosen)]
    assert bool(chosen) == bool(fresh)
    total = sum(one.prompt.shape[1] for one in chosen)
    assert len(chosen) <= 1 or total <= at_once
    if len(chosen) < len(fresh):
        assert total + fresh[len(chosen)].prompt.shape[1] > at_once
