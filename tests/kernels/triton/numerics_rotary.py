"""Turning and storing by the kernel: to the bit what the plain network turns and a cache stores."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from chatglm.kernels.triton import triton_rotary
from chatglm.nn.rotary import rotate
from tests.kernels.triton.numerics import DEVICE, INTERPRETED
from tests.kernels.triton.step_cases import StoreCase

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# The interpreter cuts bfloat16 off where a card rounds; on a card, float32 products and sums may be one operation.
BOUNDS = {torch.bfloat16: 2**-6} if INTERPRETED else {torch.float32: 1e-6}


def run(case: StoreCase) -> Tensor:
    query = torch.full_like(case.query, torch.nan, dtype=case.qkv.dtype)
    stores = case.keys, case.values, case.table, case.lengths
    triton_rotary.launch(case.qkv, *case.tables, *stores, case.parts, query)
    return query


def check(case: StoreCase) -> None:
    stores = case.keys.clone(), case.values.clone()
    query = run(case)
    cos, sin = (table[:, None, None] for table in case.tables)
    heads = case.heads()
    rotated, key = (rotate(part, (cos, sin), case.parts) for part in heads[:2])
    bound = max(BOUNDS.get(case.qkv.dtype, 0), BOUNDS.get(case.keys.dtype, 0))
    torch.testing.assert_close(query, rotated[:, :, 0], atol=bound, rtol=bound)
    for number, length in enumerate(case.lengths.tolist()):
        for store, new in zip(stores, (key, heads[2]), strict=True):
            store[case.place(number, length - 1)] = new[number, :, 0].to(store.dtype)
    for changed, store in zip((case.keys, case.values), stores, strict=True):
        torch.testing.assert_close(changed, store, atol=bound, rtol=bound, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("width", [12, 128, *(pytest.param(n, marks=pytest.mark.slow) for n in (8, 64))])
def test_equals_the_plain_network(width: int, parts: int, dtype: torch.dtype) -> None:
    """Every other place of the stores keeps what it held."""
    check(StoreCase(heads=5, width=width, dtype=dtype, parts=parts, device=DEVICE))


@pytest.mark.parametrize("stored", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_store_has_a_type_of_its_own(dtype: torch.dtype, stored: torch.dtype) -> None:
    check(StoreCase([1, 100], 4, 16, dtype, stored, device=DEVICE))


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")  # by numpy, in the interpreter
def test_what_is_too_large_becomes_infinite() -> None:
    case = StoreCase([3], 1, 8, torch.float32, torch.float16, device=DEVICE)
    case.qkv.mul_(1e6)
    run(case)
    assert case.values[case.place(0, 2)].isinf().any()


def test_a_length_past_the_table_is_that_of_a_full_one() -> None:
    case = StoreCase([128, 100], 2, 8, device=DEVICE)
    case.table = case.table[:, :2].contiguous()
    run(case)
    full = case.keys.clone()
    case.lengths += torch.tensor([300, 0], dtype=torch.int32, device=DEVICE)
    run(case)
    torch.testing.assert_close(case.keys, full, atol=0, rtol=0, equal_nan=True)


def test_a_row_alone_is_the_same_to_the_bit() -> None:
    case = StoreCase(heads=3, width=64, dtype=torch.float16, device=DEVICE)
    together, all_rows = run(case), vars(case).copy()
    keys = case.keys.clone()
    for number in range(len(together)):
        one = slice(number, number + 1)
        vars(case).update(all_rows)
        case.qkv, case.query, case.table, case.lengths = (
            part[one].contiguous() for part in (case.qkv, case.query, case.table, case.lengths)
        )
        case.tables = case.tables[0][one], case.tables[1][one]
        assert torch.equal(run(case)[0], together[number])
    torch.testing.assert_close(case.keys, keys, atol=0, rtol=0, equal_nan=True)
