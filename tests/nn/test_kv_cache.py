"""The cache keeps what it is given, in order, at any split, and grows without copying quadratically."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chatglm.nn.kv_cache import KVCache


@given(splits=st.lists(st.integers(1, 9), min_size=1, max_size=20), capacity=st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_keeps_everything_in_order(splits: list[int], capacity: int) -> None:
    keys, values = torch.randn(2, 1, 2, sum(splits), 4)
    cache = KVCache(num_layers=2, capacity=capacity)
    for layer in range(2):
        seen_keys = seen_values = torch.empty(0)
        for key, value in zip(keys.split(splits, dim=2), values.split(splits, dim=2), strict=True):
            seen_keys, seen_values = cache.update(key, value, layer)
        assert torch.equal(seen_keys, keys)
        assert torch.equal(seen_values, values)
        assert cache.get_seq_length(layer) == sum(splits)
        assert torch.equal(cache.layer(layer)[0], keys)


@given(splits=st.lists(st.integers(1, 9), min_size=2, max_size=12), capacity=st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_layers_keep_to_their_own_room(splits: list[int], capacity: int) -> None:
    """All layers take their first room at once; each writes and grows in it as if it were alone."""
    num_layers = 3
    keys, values = torch.randn(2, num_layers, 1, 2, sum(splits), 4)
    cache = KVCache(num_layers, capacity)
    start = 0
    for size in splits:
        stop = start + size
        for layer in range(num_layers):
            cache.append(keys[layer][:, :, start:stop], values[layer][:, :, start:stop], layer)
        start = stop
        places = {cache.layer(layer)[0].untyped_storage().data_ptr() for layer in range(num_layers)}
        assert len(places) == (1 if stop <= max(capacity, splits[0]) else num_layers)
    for layer in range(num_layers):
        assert torch.equal(cache.layer(layer)[0], keys[layer])
        assert torch.equal(cache.layer(layer)[1], values[layer])


def test_gradients_flow_through_a_cache_filled_without_them() -> None:
    cache = KVCache(num_layers=2, capacity=8)
    with torch.no_grad():
        for layer in range(2):
            cache.update(torch.ones(1, 1, 2, 4), torch.ones(1, 1, 2, 4), layer)
    key = torch.full((1, 1, 1, 4), 3.0, requires_grad=True)
    total = sum((cache.update(key, key, layer)[0] ** 2).sum() for layer in range(2))
    assert isinstance(total, torch.Tensor)
    total.backward()
    assert torch.equal(key.grad, torch.full_like(key, 12.0))


def test_growing_token_by_token_moves_storage_rarely() -> None:
    cache = KVCache(num_layers=1, capacity=1)
    places = {cache.update(torch.zeros(1, 1, 1, 4), torch.zeros(1, 1, 1, 4), 0)[0].data_ptr() for _ in range(1000)}
    assert len(places) <= 11
    assert cache.num_bytes <= 2 * 2 * 1000 * 4 * 4


@given(splits=st.lists(st.integers(1, 9), min_size=1, max_size=20), capacity=st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_stored_as_half(splits: list[int], capacity: int) -> None:
    """Every call sees the same numbers, torch's own half of what was given, in the type it gave, at any split."""
    keys, values = 100 * torch.randn(2, 1, 2, sum(splits), 4)
    cache = KVCache(num_layers=1, capacity=capacity, storage_dtype=torch.float16)
    stop = 0
    for key, value in zip(keys.split(splits, dim=2), values.split(splits, dim=2), strict=True):
        stop += key.shape[2]
        seen_keys, seen_values = cache.update(key, value, 0)
        assert seen_keys.dtype == torch.float32
        assert torch.equal(seen_keys, keys[:, :, :stop].half().float())
        assert torch.equal(seen_values, values[:, :, :stop].half().float())
    assert torch.equal(cache.layer(0)[0], keys.half())


@given(num_first=st.integers(1, 9), num_more=st.integers(0, 60), capacity=st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_appending_from_outside(num_first: int, num_more: int, capacity: int) -> None:
    """Writing into the room that is offered is the same as an update."""
    keys, values = torch.randn(2, 1, 2, num_first + num_more, 4).half()
    ours, updated = (KVCache(2, capacity, torch.float16) for _ in range(2))
    ours.update(keys[:, :, :num_first], values[:, :, :num_first], 1)
    updated.update(keys[:, :, :num_first], values[:, :, :num_first], 1)
    for n in range(num_first, num_first + num_more):
        room_keys, room_values, length = ours.room_for_one(1)
        assert length == n < room_keys.shape[2]
        assert room_keys.is_contiguous()
        assert room_values.is_contiguous()
        room_keys[:, :, length], room_values[:, :, length] = keys[:, :, n], values[:, :, n]
        ours.append_one(1)
        updated.update(keys[:, :, n : n + 1], values[:, :, n : n + 1], 1)
    assert ours.get_seq_length(1) == updated.get_seq_length(1)
    assert ours.get_seq_length(0) == 0
    for mine, theirs in zip(ours.layer(1), updated.layer(1), strict=True):
        assert torch.equal(mine, theirs)


def test_room_without_an_append_changes_nothing() -> None:
    cache = KVCache(1, 1, torch.float16)
    cache.update(torch.ones(1, 1, 1, 4), torch.ones(1, 1, 1, 4), 0)
    for _ in range(3):
        assert cache.room_for_one(0)[2] == 1
    assert torch.equal(cache.layer(0)[0], torch.ones(1, 1, 1, 4).half())


def test_half_takes_half_the_memory() -> None:
    caches = KVCache(1), KVCache(1, storage_dtype=torch.float16)
    for cache in caches:
        cache.update(torch.zeros(1, 2, 300, 8), torch.zeros(1, 2, 300, 8), 0)
    assert caches[1].num_bytes * 2 == caches[0].num_bytes


def test_an_empty_layer_is_an_error() -> None:
    with pytest.raises(IndexError):
        KVCache(1).layer(0)
    with pytest.raises(IndexError):
        KVCache(1).room_for_one(0)
