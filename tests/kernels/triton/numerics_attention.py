"""Attention of a step by the kernels: against float64 and plain torch, and to the bit in every batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from chatglm.kernels import reference
from chatglm.kernels.triton import triton_attention
from chatglm.kernels.triton.triton_attention import GROUP, SECTION
from tests.kernels.triton.numerics import DEVICE, INTERPRETED
from tests.kernels.triton.step_cases import BOUNDS, PagedCase


def run(case: PagedCase) -> Tensor:
    """The kernels' result; whatever they leave unwritten or read unwritten is NaN."""
    result = torch.full_like(case.query, torch.nan)
    partials = triton_attention.new_partials(case.query, case.keys.shape[2], case.table.shape[1])
    for partial in partials:
        partial.fill_(torch.nan)
    triton_attention.launch(case.query, case.keys, case.values, case.table, case.lengths, result, partials)
    return result


def check(case: PagedCase, factor: float = 1.0) -> None:
    result = run(case)
    bound = factor * BOUNDS[case.query.dtype]
    torch.testing.assert_close(result.cpu().double(), case.expected(), atol=bound, rtol=bound)
    plain = reference.decode_attention(case.query, case.keys, case.values, case.table, case.lengths)
    torch.testing.assert_close(result, plain, atol=bound, rtol=bound)


@pytest.mark.parametrize(
    ("width", "dtype"),
    [
        pytest.param(8, torch.float32, marks=pytest.mark.slow),
        (16, torch.bfloat16),
        (64, torch.float16),
        (128, torch.bfloat16),
    ],
    ids=str,
)
def test_equals_float64(width: int, dtype: torch.dtype) -> None:
    check(PagedCase(heads=2, width=width, dtype=dtype, device=DEVICE))


@pytest.mark.parametrize("width", [6, 48])
def test_widths_that_are_no_power_of_two(width: int) -> None:
    check(PagedCase([1, 65, 130], 2, width, device=DEVICE))


@pytest.mark.parametrize("page", [16, 48])
def test_pages_of_other_sizes(page: int) -> None:
    check(PagedCase([1, page, page + 1, 300], 1, 16, page=page, device=DEVICE))


def test_queries_of_another_type_than_the_store() -> None:
    case = PagedCase(dtype=torch.float16, device=DEVICE)
    case.query = case.query.float()
    check(case)


@pytest.mark.parametrize("size", [30.0, 1000.0])
def test_sharp_and_flat_scores(size: float) -> None:
    """Scores thousands apart: one position takes all, the others nothing, and nothing overflows."""
    case = PagedCase([300, 500], 2, 64, size=size, device=DEVICE)
    check(case, size)
    case.query.zero_()
    check(case)


def test_more_sections_than_are_merged_at_once() -> None:
    lengths = [GROUP * SECTION, GROUP * SECTION + 1, 2 * GROUP * SECTION + 200]
    check(PagedCase(lengths, 1, 16, device=DEVICE))


@pytest.mark.parametrize("longest", [300, pytest.param(GROUP * SECTION + 300, marks=pytest.mark.slow)])
def test_a_row_alone_is_the_same_to_the_bit(longest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone, in a batch, at any place in it, with any table, by any number of programs."""
    lengths = [1, 65, 700, 130, longest]
    case = PagedCase(lengths, 1, 16, torch.float16, device=DEVICE)
    together = run(case)
    for number in range(len(lengths)):
        assert torch.equal(run(case.row(number))[0], together[number])
    for programs in (1, 30):
        monkeypatch.setattr(triton_attention, "PROGRAMS", programs)
        assert torch.equal(run(case), together)
    order = torch.tensor([3, 0, 4, 2, 1], device=DEVICE)
    case.query, case.table, case.lengths = case.query[order], case.table[order], case.lengths[order]
    assert torch.equal(run(case), together[order])


def test_a_length_past_the_table_is_that_of_a_full_one() -> None:
    case = PagedCase([128, 100], 1, 16, spare=0, device=DEVICE)
    full = run(case)
    case.lengths += torch.tensor([300, 0], dtype=torch.int32, device=DEVICE)
    assert torch.equal(run(case), full)


@pytest.mark.parametrize(("spoilt", "bad"), [("keys", torch.nan), ("values", torch.nan), ("values", torch.inf)])
def test_a_bad_position_spoils_its_head(spoilt: str, bad: float) -> None:
    case = PagedCase([300, 200], 2, 16, device=DEVICE)
    getattr(case, spoilt)[int(case.table[0, 2]), 1, 9, 5] = bad
    is_finite = run(case).isfinite()
    assert is_finite[0, 0].all()
    assert is_finite[1].all()
    assert not is_finite[0, 1].all()


@pytest.mark.skipif(INTERPRETED, reason="takes the interpreter minutes")
def test_real_sizes_on_a_card() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        check(PagedCase([1, 64, 500, 1000, 2048] * 8, 32, 128, dtype, device=DEVICE))
