"""What lies between the products of a step, in plain torch: against the plain network's parts, and float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from chatglm import kernels
from chatglm.nn.attention import attend
from chatglm.nn.kv_cache import KVCache
from chatglm.nn.rotary import head_tables, rotate
from tests.kernels.triton.step_cases import BOUNDS, PagedCase, StoreCase

DTYPES = list(BOUNDS)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [6, 64, 128])
def test_attention_equals_float64(width: int, dtype: torch.dtype) -> None:
    """Unused places are NaN: none of it shows."""
    case = PagedCase(width=width, dtype=dtype)
    result = kernels.decode_attention(case.query, case.keys, case.values, case.table, case.lengths)
    assert result.dtype is dtype
    torch.testing.assert_close(result.double(), case.expected(), atol=BOUNDS[dtype], rtol=BOUNDS[dtype])


def test_more_rows_than_are_gathered_at_once() -> None:
    case = PagedCase([1 + 5 * number for number in range(37)], heads=1, width=8, page=16)
    result = kernels.decode_attention(case.query, case.keys, case.values, case.table, case.lengths)
    torch.testing.assert_close(result.double(), case.expected(), atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("stored", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("parts", [1, 2])
def test_a_step_is_that_of_a_cache(parts: int, dtype: torch.dtype, stored: torch.dtype) -> None:
    """Turned, stored and attended to as by `rotate`, `KVCache` and `attend`; nothing else changes."""
    case = StoreCase(dtype=dtype, stored=stored, parts=parts)
    before = case.keys.clone(), case.values.clone()
    query = kernels.rotate_and_store(
        case.qkv, *case.tables, case.keys, case.values, case.table, case.lengths, case.parts
    )
    mixed = kernels.decode_attention(query, case.keys, case.values, case.table, case.lengths)
    heads = case.heads()
    for number, length in enumerate(case.lengths.tolist()):
        tables = case.tables[0][number].view(1, 1, 1, -1), case.tables[1][number].view(1, 1, 1, -1)
        rotated, key, value = (part[number : number + 1] for part in heads)
        rotated, key = rotate(rotated, tables, parts), rotate(key, tables, parts)
        cache = KVCache(1, storage_dtype=stored)
        if length > 1:
            cache.append(*case.rows[number][:, None, :, : length - 1], 0)
        keys, values = cache.update(key, value, 0)
        place = case.place(number, length - 1)
        assert torch.equal(query[number], rotated[0, :, 0])
        assert torch.equal(case.keys[place], cache.layer(0)[0][0, :, -1])
        assert torch.equal(case.values[place], cache.layer(0)[1][0, :, -1])
        expected = attend(rotated, keys, values, None)[0, :, 0]
        # The plain way reads the cache in the network's type; here what is stored is multiplied as it is.
        bound = 2 * max(BOUNDS[dtype], BOUNDS[stored] if dtype is torch.bfloat16 else 0)
        torch.testing.assert_close(mixed[number], expected, atol=bound, rtol=bound)
        for store, old in zip((case.keys, case.values), before, strict=True):
            old[place] = store[place]
    for store, old in zip((case.keys, case.values), before, strict=True):
        torch.testing.assert_close(store, old, atol=0, rtol=0, equal_nan=True)


def test_tables_of_positions_fit() -> None:
    """Cosines and sines as a step of the network makes them."""
    case = StoreCase([5, 9], parts=2, width=8)
    positions = torch.tensor([[4, 1], [6, 3]])[..., None]
    tables = head_tables(positions, 8, torch.float32)
    case.tables = tables[0][:, 0, 0], tables[1][:, 0, 0]
    query = kernels.rotate_and_store(case.qkv, *case.tables, case.keys, case.values, case.table, case.lengths, 2)
    assert torch.equal(query[:, :, None], rotate(case.heads()[0], tables, 2))


def test_padding_rows_change_no_other_row() -> None:
    """They all write to page 0, and read what is there."""
    case = StoreCase([70, 3])
    alone = kernels.rotate_and_store(case.qkv, *case.tables, case.keys, case.values, case.table, case.lengths, 2)
    table = F.pad(case.table, (0, 0, 0, 3))
    lengths = F.pad(case.lengths, (0, 3), value=1)
    qkv, cos, sin = (torch.cat((part, part[:1].expand(3, -1))) for part in (case.qkv, *case.tables))
    keys, values = case.keys.clone(), case.values.clone()
    query = kernels.rotate_and_store(qkv, cos, sin, keys, values, table, lengths, 2)
    assert torch.equal(query[:2], alone)
    assert torch.equal(keys[1:].nan_to_num(9), case.keys[1:].nan_to_num(9))
    mixed = kernels.decode_attention(query, keys, values, table, lengths)
    assert mixed.isfinite().all()


def test_a_length_past_the_table_is_that_of_a_full_one() -> None:
    case = StoreCase([128, 100], width=8)
    case.table = case.table[:, :2].contiguous()
    stores = case.keys.clone(), case.values.clone()
    for keys, values, grown in ((case.keys, case.values, 0), (*stores, 7)):
        lengths = case.lengths + torch.tensor([grown, 0], dtype=torch.int32)
        query = kernels.rotate_and_store(case.qkv, *case.tables, keys, values, case.table, lengths, 2)
        grown_mix = kernels.decode_attention(query, keys, values, case.table, lengths)
    assert torch.equal(case.keys.nan_to_num(9), stores[0].nan_to_num(9))
    assert torch.equal(grown_mix, kernels.decode_attention(query, case.keys, case.values, case.table, case.lengths))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_norm_is_that_of_a_block(dtype: torch.dtype) -> None:
    branch, residual = torch.randn(2, 5, 48).to(dtype)
    weight, bias = torch.randn(2, 48).to(dtype)
    expected = F.layer_norm(torch.add(branch, residual, alpha=7.5), (48,), weight, bias, 1e-5)
    assert torch.equal(kernels.residual_norm(branch, residual, 7.5, weight, bias, 1e-5), expected)


@pytest.mark.parametrize("num_partials", [1, 3, 8])
def test_partial_products_are_summed_first(num_partials: int) -> None:
    partials, (weight, bias, own) = torch.randn(num_partials, 5, 48), torch.randn(3, 48)
    residual = torch.randn(5, 48)
    whole = partials.double().sum(0) + own.double()
    expected = F.layer_norm(whole + 7.5 * residual.double(), (48,), weight.double(), bias.double(), 1e-5)
    result = kernels.residual_norm(partials, residual, 7.5, weight, bias, 1e-5, own)
    torch.testing.assert_close(result.double(), expected, atol=2e-6, rtol=2e-6)
    half = kernels.residual_norm(partials, residual.half(), 7.5, weight.half(), bias.half(), 1e-5, own.half())
    assert half.dtype is torch.float16
    torch.testing.assert_close(half.double(), expected, atol=8e-3, rtol=8e-3)


@pytest.mark.parametrize(
    "change",
    [
        {"keys": torch.zeros(2, 3, 64, 8)},
        {"keys": torch.zeros(4, 3, 64, 16)[..., ::2]},
        {"values": torch.zeros(4, 3, 64, 8, dtype=torch.float16)},
        {"table": torch.zeros(2, 2, dtype=torch.int64)},
        {"table": torch.zeros(3, 2, dtype=torch.int32)},
        {"lengths": torch.ones(2, 1, dtype=torch.int32)},
        {"query": torch.zeros(2, 3, 4)},
        {"qkv": torch.zeros(2, 64)},
        {"tables": (torch.zeros(1, 8), torch.zeros(1, 8))},
        {"parts": 3},
    ],
    ids=lambda change: next(iter(change)),
)
def test_wrong_tensors_are_rejected(change: dict[str, Any]) -> None:
    case = StoreCase([5, 9], width=8)
    vars(case).update(change)
    store = case.keys, case.values, case.table, case.lengths
    with pytest.raises(ValueError, match=r"takes|parts"):
        if "query" in change:
            kernels.decode_attention(case.query, *store)
        else:
            kernels.rotate_and_store(case.qkv, *case.tables, *store, case.parts)


def test_a_branch_of_another_shape_is_rejected() -> None:
    x, row = torch.zeros(2, 8), torch.zeros(8)
    for branch in (torch.zeros(3, 8), torch.zeros(2, 2, 7), torch.zeros(8)):
        with pytest.raises(ValueError, match="branch"):
            kernels.residual_norm(branch, x, 1.0, row, row, 1e-5)
