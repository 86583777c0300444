"""One candidate of each row sampled by its own parameters, in one kernel. Shapes: B rows, K candidates, best first."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from chatglm.kernels.triton.launching import at

# The constants of SplitMix64 as signed numbers.
STEP = 0x9E3779B97F4A7C15 - 2**64
FIRST = 0xBF58476D1CE4E5B9 - 2**64
SECOND = 0x94D049BB133111EB - 2**64


@triton.jit
def _shifted(x, BITS: tl.constexpr):
    """Shifted right as an unsigned number."""
    return (x >> BITS) & ((1 << (64 - BITS)) - 1)


@triton.jit
def _mix(x, FIRST: tl.constexpr, SECOND: tl.constexpr):
    x = (x ^ _shifted(x, 30)) * FIRST
    x = (x ^ _shifted(x, 27)) * SECOND
    return x ^ _shifted(x, 31)


@triton.jit
def draw(
    kept,
    seeds,
    counts,
    temperatures,
    top_ks,
    top_ps,
    result,
    NUM_KEPT: tl.constexpr,
    BLOCK: tl.constexpr,
    STEP: tl.constexpr,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
):
    """Grid: rows."""
    row = tl.program_id(0)
    index = tl.arange(0, BLOCK)
    is_there = index < NUM_KEPT
    scores = tl.load(kept + row * NUM_KEPT + index, mask=is_there, other=-float("inf"))
    temperature = tl.load(temperatures + row)
    top_k = tl.load(top_ks + row)
    top_p = tl.load(top_ps + row)
    last = tl.where(top_k == 0, NUM_KEPT, tl.minimum(top_k, NUM_KEPT)) - 1
    least = tl.load(kept + row * NUM_KEPT + last)
    scaled = tl.where(is_there & (scores >= least), scores / tl.where(temperature > 0, temperature, 1.0), -float("inf"))
    weights = tl.exp(scaled - tl.max(scaled, axis=0))
    probabilities = weights / tl.sum(weights, axis=0)
    better = tl.cumsum(probabilities, axis=0) - probabilities
    # Nothing is better than the first, so it is kept by any bound above 0.
    is_kept = (better < tl.where(top_p >= 1, 2.0, tl.maximum(top_p, 1e-30))) & (probabilities > 0)
    sums = tl.cumsum(tl.where(is_kept, probabilities, 0.0), axis=0)
    state = _mix(tl.load(seeds + row), FIRST, SECOND) + (tl.load(counts + row) + 1) * STEP
    uniform = _shifted(_mix(state, FIRST, SECOND), 40).to(tl.float32) * (1.0 / 16777216)
    bound = uniform * tl.max(tl.where(is_there, sums, 0.0), axis=0)
    num_below = tl.sum((is_there & (sums <= bound)).to(tl.int32), axis=0)
    last_kept = tl.sum(is_kept.to(tl.int32), axis=0) - 1
    tl.store(result + row, tl.maximum(tl.minimum(num_below, last_kept), 0).to(tl.int64))


def launch(
    kept_BK: Tensor,
    seeds_B: Tensor,
    counts_B: Tensor,
    temperatures_B: Tensor,
    top_ks_B: Tensor,
    top_ps_B: Tensor,
    result_B: Tensor,
) -> None:
    """Fill `result_B`, int64; candidates are float32, the rest as in `RowParameters`, all contiguous."""
    num_rows, num_kept = kept_BK.shape
    block = triton.next_power_of_2(num_kept)
    with at(kept_BK):
        draw[num_rows,](
            kept_BK, seeds_B, counts_B, temperatures_B, top_ks_B, top_ps_B, result_B,
            NUM_KEPT=num_kept, BLOCK=block, STEP=STEP, FIRST=FIRST, SECOND=SECOND, num_warps=1,
        )  # fmt: skip


@torch.library.custom_op("chatglm::draw", mutates_args=(), device_types="cuda")
def operator(
    kept_BK: Tensor, seeds_B: Tensor, counts_B: Tensor, temperatures_B: Tensor, top_ks_B: Tensor, top_ps_B: Tensor
) -> Tensor:
    """`launch` as an operator of torch: it runs on fake tensors and in graphs, on the device of its tensors."""
    result_B = torch.empty_like(seeds_B)
    numbers = seeds_B.contiguous(), counts_B.contiguous()
    parameters = temperatures_B.contiguous(), top_ks_B.contiguous(), top_ps_B.contiguous()
    launch(kept_BK.contiguous(), *numbers, *parameters, result_B)
    return result_B


@operator.register_fake
def _(kept_BK: Tensor, seeds_B: Tensor, *_others: object) -> Tensor:
    return seeds_B.new_empty(seeds_B.shape)
