"""The norm of a sum by the kernel: against float64 and plain torch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from chatglm.kernels import reference
from chatglm.kernels.triton import triton_norm
from tests.kernels.triton.numerics import DEVICE, poisoned

ALPHA, EPS = 56**0.5, 1e-5
ROWS = 3
# The kernel rounds once, at its end; the interpreter cuts bfloat16 off there, where a card rounds.
BOUNDS = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 1.6e-2}
# Plain torch has rounded the sum before.
PLAIN_BOUNDS = {torch.float32: 2e-6, torch.float16: 8e-3, torch.bfloat16: 6.4e-2}


class Case:
    """A branch, whole (0 partial products) or in partial products, and the rest in the activations' type."""

    def __init__(self, width: int, num_partials: int, dtype: torch.dtype, *, has_bias: bool = True) -> None:
        self.branch = torch.randn(*(num_partials or 1,), ROWS, width)
        self.branch = (self.branch if num_partials else self.branch[0].to(dtype)).to(DEVICE)
        self.residual, (self.weight, self.bias) = (torch.randn(rows, width).to(DEVICE, dtype) for rows in (ROWS, 2))
        self.branch_bias = torch.randn(width).to(DEVICE, dtype) if has_bias else None

    def run(self) -> Tensor:
        result = poisoned(*self.residual.shape, dtype=self.residual.dtype)
        norm = ALPHA, self.weight, self.bias, EPS, self.branch_bias
        triton_norm.launch(self.branch, self.residual, *norm, result)
        return result

    def expected(self) -> Tensor:
        branch = self.branch.double() if self.branch.dim() == 2 else self.branch.double().sum(0)
        total = branch + ALPHA * self.residual.double()
        if self.branch_bias is not None:
            total += self.branch_bias
        return F.layer_norm(total, total.shape[1:], self.weight.double(), self.bias.double(), EPS)

    def check(self) -> None:
        result, dtype = self.run(), self.residual.dtype
        torch.testing.assert_close(result.double(), self.expected(), atol=BOUNDS[dtype], rtol=BOUNDS[dtype])
        plain = reference.residual_norm(
            self.branch, self.residual, ALPHA, self.weight, self.bias, EPS, self.branch_bias
        )
        torch.testing.assert_close(result, plain, atol=PLAIN_BOUNDS[dtype], rtol=PLAIN_BOUNDS[dtype])


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("num_partials", [0, 1, 3, 8])
@pytest.mark.parametrize("width", [1, 100, 4096])
def test_equals_float64(width: int, num_partials: int, dtype: torch.dtype) -> None:
    Case(width, num_partials, dtype).check()


@pytest.mark.parametrize("num_partials", [0, 2])
@pytest.mark.parametrize("width", [5000, triton_norm.MAX_WIDTH])
def test_wide_rows(width: int, num_partials: int) -> None:
    Case(width, num_partials, torch.float16, has_bias=False).check()


def test_partial_products_are_summed_first_to_last() -> None:
    """1e8 + 1 is 1e8 in float32: another order would leave another sum."""
    case = Case(64, 3, torch.float32, has_bias=False)
    case.branch[0], case.branch[1], case.branch[2] = 1e8, case.residual, -1e8
    first_to_last = (case.branch[0] + case.branch[1]) + case.branch[2]
    assert not torch.equal(first_to_last, case.branch[0] + case.branch[2] + case.branch[1])
    result = case.run()
    case.branch = first_to_last
    assert torch.equal(result, case.run())


def test_a_row_alone_is_the_same_to_the_bit() -> None:
    case = Case(300, 3, torch.float16)
    together, branch, residual = case.run(), case.branch, case.residual
    for number in range(ROWS):
        case.branch, case.residual = branch[:, number : number + 1].contiguous(), residual[number : number + 1]
        assert torch.equal(case.run()[0], together[number])


def test_a_large_mean_costs_no_digits() -> None:
    """The variance is that of the centred numbers, never a difference of squares."""
    case = Case(512, 0, torch.float32)
    case.residual += 100
    torch.testing.assert_close(case.run().double(), case.expected(), atol=5e-4, rtol=5e-4)
