"""Several requests in one call: each attends in its own cache only, and a call that fails leaves nothing behind."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from chatglm.nn.attention import attend
from chatglm.nn.kv_cache import KVCache
from chatglm.nn.packed import PackedPrompts, PackedSteps

HEADS, WIDTH = 3, 8
LAYERS = 2


def numbers(length: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys, values [1, H, T, D]."""
    parts = torch.randn(3, 1, HEADS, length, WIDTH, generator=torch.Generator().manual_seed(seed))
    return parts[0], parts[1], parts[2]


def filled(lengths: list[int], dtype: torch.dtype | None = None) -> list[KVCache]:
    caches = [KVCache(LAYERS, 1, dtype) for _ in lengths]
    for number, (cache, length) in enumerate(zip(caches, lengths, strict=True)):
        for layer in range(LAYERS):
            _, keys, values = numbers(length, 100 * number + layer)
            cache.update(keys, values, layer)
    return caches


def contents(caches: list[KVCache]) -> list[Tensor]:
    return [part.clone() for cache in caches for layer in range(LAYERS) for part in cache.layer(layer)]


lengths = st.lists(st.integers(1, 20), min_size=1, max_size=5)
dtypes = st.sampled_from([None, torch.float16])


@given(lengths, dtypes, st.integers(0, 2))
@settings(max_examples=30, deadline=None)
def test_packed_prompts_are_those_of_each_alone(lengths: list[int], dtype: torch.dtype | None, num_behind: int) -> None:
    query, key, value = numbers(sum(lengths) + num_behind, 1)
    together, alone = ([KVCache(LAYERS, 1, dtype) for _ in lengths] for _ in range(2))
    packed = PackedPrompts(together, lengths)
    assert packed.get_seq_length() == 0
    mixed = packed.attend(query, key, value, 1)
    assert mixed.shape == query.shape
    assert not mixed[:, :, sum(lengths) :].any()
    start = 0
    for cache, one, length in zip(together, alone, lengths, strict=True):
        part = slice(start, start := start + length)
        expected = attend(query[:, :, part], *one.update(key[:, :, part], value[:, :, part], 1), None)
        assert torch.equal(mixed[:, :, part], expected)
        for stored, stored_alone in zip(cache.layer(1), one.layer(1), strict=True):
            assert torch.equal(stored, stored_alone)


@given(lengths, dtypes, st.integers(0, 2))
@settings(max_examples=30, deadline=None)
def test_packed_steps_are_those_of_each_alone(lengths: list[int], dtype: torch.dtype | None, num_behind: int) -> None:
    together, alone = filled(lengths, dtype), filled(lengths, dtype)
    for step in range(3):
        packed = PackedSteps(together)
        for layer in range(LAYERS):
            query, key, value = numbers(len(lengths) + num_behind, 1000 * step + layer)
            mixed = packed.attend(query, key, value, layer)
            assert not mixed[:, :, len(lengths) :].any()
            for n, cache in enumerate(alone):
                part = slice(n, n + 1)
                expected = attend(query[:, :, part], *cache.update(key[:, :, part], value[:, :, part], layer), None)
                assert torch.equal(mixed[:, :, part], expected)
        packed.commit(LAYERS)
        assert packed.get_seq_length() == lengths[0] + step + 1
    for ours, expected in zip(contents(together), contents(alone), strict=True):
        assert torch.equal(ours, expected)


def test_steps_that_are_not_committed_never_were() -> None:
    """The second layer fails: the first one's numbers do not count, and the next call writes over them."""
    caches, untouched = filled([4, 7]), filled([4, 7])
    first = PackedSteps(caches)
    first.attend(*numbers(2, 5), 0)
    with pytest.raises(IndexError):
        first.attend(*numbers(2, 6), LAYERS)
    for ours, expected in zip(contents(caches), contents(untouched), strict=True):
        assert torch.equal(ours, expected)
    query, key, value = numbers(2, 7)
    again, fresh = PackedSteps(caches), PackedSteps(untouched)
    assert torch.equal(again.attend(query, key, value, 0), fresh.attend(query, key, value, 0))
