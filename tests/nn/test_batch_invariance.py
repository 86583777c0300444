"""The measured number of rows, on this machine and on pretended ones."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from chatglm.nn.batch_invariance import LARGE_SHAPE, SHAPES, _measured, least_rows, rows_for_invariance

CPU = torch.device("cpu")


@pytest.mark.parametrize("few", [1, 2, 3, 4, 7, 8, 16, 31])
def test_least_rows_where_few_rows_round_differently(few: int) -> None:
    def product(x: Tensor, weight: Tensor) -> Tensor:
        result = F.linear(x.float(), weight.float()).bfloat16()
        return result * 1.01 if len(x) < few else result

    expected = next(count for count in (1, 2, 4, 8, 16, 32) if count >= few)
    assert least_rows(product, torch.bfloat16, SHAPES) == expected


def test_no_least_rows_where_one_row_of_many_differs() -> None:
    def product(x: Tensor, weight: Tensor) -> Tensor:
        result = F.linear(x.float(), weight.float())
        result[-1] *= 1 + (len(x) % 2)
        return result

    assert least_rows(product, torch.bfloat16, SHAPES) is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_this_machine_holds_what_was_measured(dtype: torch.dtype) -> None:
    rows = rows_for_invariance(dtype, CPU)
    if rows is None:
        assert least_rows(F.linear, dtype, (*SHAPES, LARGE_SHAPE)) not in (1, 2, 4)
        return
    generator = torch.Generator().manual_seed(1)
    x, weight = (torch.randn(count, 256, generator=generator).to(dtype) for count in (40, 320))
    whole = F.linear(x, weight)
    assert all(torch.equal(F.linear(x[:count], weight), whole[:count]) for count in range(rows, 40))


def test_float32_and_other_devices_are_not_measured() -> None:
    assert rows_for_invariance(torch.float32, CPU) == rows_for_invariance(torch.bfloat16, torch.device("cuda")) == 1


def test_measuring_is_quick() -> None:
    _measured.cache_clear()
    start = time.process_time()
    rows_for_invariance(torch.bfloat16, CPU)
    assert time.process_time() - start < 1  # about 0.02 s where nothing else runs
