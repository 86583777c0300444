"""Prompts that begin alike: reused keys and values change no answer, and give way to running requests."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from chatglm.engine import Engine
from chatglm.engine import decoder as decoder_module
from chatglm.engine.block_manager import BLOCK_TOKENS
from chatglm.engine.decoder import BatchDecoder
from chatglm.engine.prefix_cache import LEAST_TOKENS
from chatglm.generation.config import GenerationConfig
from chatglm.messages import Message
from chatglm.pipeline import Pipeline, load_pipeline

CONFIGS = [GenerationConfig(temperature=0, max_new_tokens=7), GenerationConfig(seed=5, max_new_tokens=7)]


@pytest.fixture(scope="module")
def plain(pipe: Pipeline) -> Iterator[Engine]:
    """Reuses nothing."""
    engine = Engine(BatchDecoder(pipe.model), pipe.tokenizer, reuses_prefixes=False)
    yield engine
    engine.close()


def test_the_next_turn_is_read_from_where_it_is_new(folder: Path) -> None:
    options = {"temperature": 0, "max_new_tokens": 12}
    turns = [Message("user", "the quick brown fox " * 9)]
    with load_pipeline(folder, device="cpu", dtype="fp32") as pipe:
        first = pipe.submit(turns, **options).result()
        turns += [Message("assistant", first.text), Message("user", "hello")]
        second = pipe.submit(turns, **options).result()
        stats = pipe.engine.stats()
        known = second.cached_tokens
        if pipe.model.spec.visibility == "prefix":
            assert (known, stats.prefix_hits, stats.prefix_misses) == (0, 0, 0)
        else:
            assert first.prompt_tokens - LEAST_TOKENS < known < second.prompt_tokens
            assert (stats.prefix_hits, stats.prefix_misses) == (1, 1)
        assert (first.cached_tokens, stats.cached_tokens_total) == (0, known)
        assert stats.prompt_tokens_total == first.prompt_tokens + second.prompt_tokens
        assert stats.blocks_free == stats.blocks_total
    with load_pipeline(folder, device="cpu", dtype="fp32") as pipe:
        pipe.start_engine(reuses_prefixes=False)
        again = pipe.submit(turns, **options).result()
        assert (again.text, again.cached_tokens) == (second.text, 0)


def test_answers_of_prompts_that_begin_alike(pipe: Pipeline, plain: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many in any order, in memory for few, long ones read in pieces."""
    monkeypatch.setattr(decoder_module, "CAUSAL_TOKENS_AT_ONCE", 7)
    chance = random.Random(3)
    vocabulary = pipe.tokenizer.encode_plain("hello world, how are you? the quick brown fox")
    stem = [chance.choice(vocabulary) for _ in range(60)]
    prompts = [
        pipe.tokenizer.build_inputs_with_special_tokens(
            stem[: chance.randrange(60)] + [chance.choice(vocabulary) for _ in range(chance.randrange(1, 20))]
        )
        for _ in range(24)
    ]
    decoder = BatchDecoder(pipe.model)
    limit = 16 * BLOCK_TOKENS * decoder.position_bytes
    engine = Engine(decoder, pipe.tokenizer, max_running=3, memory_limit=limit)
    try:
        wanted = [plain.submit(prompt, CONFIGS[len(prompt) % 2]) for prompt in prompts]
        handles = [engine.submit(prompt, CONFIGS[len(prompt) % 2]) for prompt in prompts]
        assert [one.result().text for one in handles] == [one.result().text for one in wanted]
        stats = engine.stats()
        assert stats.blocks_free == stats.blocks_total
        assert (stats.prefix_hits > 0) == (pipe.model.spec.visibility == "causal")
        assert stats.prefix_hits + stats.prefix_misses == (len(prompts) if stats.prefix_hits else 0)
    finally:
        engine.close()


def test_with_and_without_an_adapter_nothing_is_shared(pipe: Pipeline) -> None:
    prompt = pipe.tokenizer.build_inputs_with_special_tokens(pipe.tokenizer.encode_plain("the quick brown fox " * 9))
    engine = Engine(BatchDecoder(pipe.model), pipe.tokenizer)
    try:
        known = [
            engine.submit(prompt, CONFIGS[0], uses_adapter=uses_adapter).result().cached_tokens
            for uses_adapter in (True, False, True, False)
        ]
    finally:
        engine.close()
    assert known[:2] == [0, 0]
    most = len(prompt) - 1 if pipe.model.spec.visibility == "causal" else 0
    assert known[2:] == [most, most]
