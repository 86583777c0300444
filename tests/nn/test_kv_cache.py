"""The cache keeps what it is given, in order, at any split, and grows without copying quadratically."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chatglm.nn.kv_cache import KVCache


@given(splits=st.lists(st.integers(1, 9), min_size=1, max_size=20), capacity=st.integers(1, 40))
@settings(max_examples=60, deadline=None)
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


def test_growing_token_by_token_moves_storage_rarely() -> None:
    cache = KVCache(num_layers=1, capacity=1)
    places = {cache.update(torch.zeros(1, 1, 1, 4), torch.zeros(1, 1, 1, 4), 0)[0].data_ptr() for _ in range(1000)}
    assert len(places) <= 11
    assert cache.num_bytes <= 2 * 2 * 1000 * 4 * 4


def test_an_empty_layer_is_an_error() -> None:
    with pytest.raises(IndexError):
        KVCache(1).layer(0)
