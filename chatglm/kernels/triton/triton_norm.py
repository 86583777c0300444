"""LayerNorm of a branch (or its partial products) and its residual: one Triton kernel, one program a row, in float32.

Partial products [S, B, C] are summed first to last, in place of the kernel of a split-K product that would sum them.
Shapes: B rows, C width, S partial products.
"""

# The functions that Triton compiles have no types.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from chatglm.kernels.triton.launching import at

# One program holds a row in its registers.
MAX_WIDTH = 16384
# 8 neighbouring elements of each thread are one load of 16 bytes.
ELEMENTS_PER_WARP = 256
# Registers of a thread for what is on its way; with 16 warps it has 128.
REGISTERS_AHEAD = 80


@triton.jit
def residual_norm(
    branch,
    branch_bias,
    residual,
    weight,
    bias,
    result,
    alpha,
    eps,
    PARTIALS: tl.constexpr,
    AHEAD: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid: rows."""
    row = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    is_column = column < WIDTH
    place = row * WIDTH + column
    size = tl.num_programs(0).to(tl.int64) * WIDTH
    # Nothing is used before all of it is on its way: ptxas would rather wait for each in turn, to save registers. It
    # moves no load over a barrier, and every sum begins with the first one.
    ahead = ()
    for number in tl.static_range(1, AHEAD):
        ahead += (tl.load(branch + number * size + place, mask=is_column, other=0.0),)  # type: ignore[assignment]
    r = tl.load(residual + place, mask=is_column, other=0.0)
    w = tl.load(weight + column, mask=is_column, other=0.0)
    b = tl.load(bias + column, mask=is_column, other=0.0)
    if HAS_BIAS:
        own = tl.load(branch_bias + column, mask=is_column, other=0.0)
    tl.debug_barrier()
    x = tl.load(branch + place, mask=is_column, other=0.0).to(tl.float32)
    for number in tl.static_range(1, AHEAD):
        x += ahead[number - 1].to(tl.float32)
    for number in tl.static_range(AHEAD, PARTIALS):
        x += tl.load(branch + number * size + place, mask=is_column, other=0.0).to(tl.float32)
    if HAS_BIAS:
        x += own.to(tl.float32)
    x += alpha * r.to(tl.float32)
    mean = tl.sum(x, axis=0) / WIDTH
    centred = tl.where(is_column, x - mean, 0.0)
    variance = tl.sum(centred * centred, axis=0) / WIDTH
    normal = centred * (1.0 / tl.sqrt_rn(variance + eps))
    scaled = normal * w.to(tl.float32) + b.to(tl.float32)
    tl.store(result + place, scaled.to(result.dtype.element_ty), mask=is_column)


def launch(
    branch: Tensor,
    residual_BC: Tensor,
    alpha: float,
    weight_C: Tensor,
    bias_C: Tensor,
    eps: float,
    branch_bias_C: Tensor | None,
    result_BC: Tensor,
) -> None:
    """Fill `result_BC`; arguments as `chatglm.kernels.residual_norm`, all contiguous."""
    num_rows, width = residual_BC.shape
    block, num_partials = triton.next_power_of_2(width), branch.shape[0] if branch.dim() == 3 else 1
    residual_norm[num_rows,](
        branch, branch_bias_C if branch_bias_C is not None else bias_C, residual_BC, weight_C, bias_C, result_BC,
        alpha, eps,
        PARTIALS=num_partials, AHEAD=num_ahead(block, num_partials), HAS_BIAS=branch_bias_C is not None,
        WIDTH=width, BLOCK=block, num_warps=num_warps(block),
    )  # fmt: skip


def num_warps(block: int) -> int:
    """Warps of a program."""
    return max(1, min(16, block // ELEMENTS_PER_WARP))


def num_ahead(block: int, num_partials: int) -> int:
    """Partial products that are loaded at once."""
    elements = max(1, block // (32 * num_warps(block)))
    # A register holds one of a partial product's numbers, or two of the four rows that are read beside them.
    return min(num_partials, max(1, REGISTERS_AHEAD // elements - 2))


@torch.library.custom_op("chatglm::residual_norm", mutates_args=(), device_types="cuda")
def operator(
    branch: Tensor,
    residual_BC: Tensor,
    alpha: float,
    weight_C: Tensor,
    bias_C: Tensor,
    eps: float,
    branch_bias_C: Tensor | None = None,
) -> Tensor:
    """`launch` as an operator of torch: it runs on fake tensors and in graphs, on the device of its tensors."""
    branch, residual_BC = branch.contiguous(), residual_BC.contiguous()
    result_BC = torch.empty_like(residual_BC)
    with at(residual_BC):
        launch(branch, residual_BC, alpha, weight_C, bias_C, eps, branch_bias_C, result_BC)
    return result_BC


@operator.register_fake
def _(branch: Tensor, residual_BC: Tensor, *_others: object) -> Tensor:
    return residual_BC.new_empty(residual_BC.shape)
