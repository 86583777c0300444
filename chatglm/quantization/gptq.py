"""GPTQ: rounding a weight so that the layer's outputs change little, https://arxiv.org/abs/2210.17323 (Frantar 2022).

A row's output error is d H d^T, H = sum of x x^T, d = rounded - given; the columns still open compensate for it:

    column      0   1   2   3   4   5              U upper triangular with H^-1 = U^T U
              | r   r | q | .   .   . |            e = (w_2 - q_2) / U_22,   w_j -= e U_2j  for the open columns j
               rounded  now   open

Beyond the paper, columns with the largest inputs come first, and scales may be smaller where that costs less; the
packed format is unchanged. Shapes: O output rows, I input columns, G groups of a row, N input vectors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from chatglm.errors import InvalidRequestError
from chatglm.kernels.packing import check_bits, check_group_size, half_scale, largest, pack, round_to

# The fewer inputs were seen for each column, the less of what they say holds for others: with as many as columns the
# largest of these values did best on inputs kept apart, with 4 times as many 0.1, with 20 times as many any.
LEAST_DAMPING, MOST_DAMPING = 0.01, 0.3
# Columns whose errors are applied to the columns behind them in one product: small ones would be bound by memory.
COLUMNS_AT_ONCE = 128
# Above this many columns float64 would take gigabytes.
MOST_COLUMNS_IN_FLOAT64 = 4096
# The scales that are tried, as parts of that which the largest weight asks for.
SHRINKAGES = tuple(1 - step / 50 for step in range(26))
# Weights that are tried at once: few enough to stay in the cache of a processor.
WEIGHTS_AT_ONCE = 2**18


class InputMoments:
    """H = sum of x x^T over the inputs of a layer, float32 [I, I]."""

    def __init__(self, num_columns: int, device: torch.device | None = None) -> None:
        self.sum_II = torch.zeros(num_columns, num_columns, device=device)
        self.num_inputs = 0

    def add(self, x: Tensor) -> None:
        """Count inputs [..., I]."""
        x_NI = x.detach().flatten(0, -2).float()
        self.sum_II.addmm_(x_NI.T, x_NI)
        self.num_inputs += len(x_NI)


@dataclass(frozen=True)
class Rounded:
    """A weight rounded by its inputs: int8 [O, I or I/2], scale [O] or [O, G], and the damping that was needed."""

    packed: Tensor
    scale: Tensor
    damping: float


def usual_damping(num_columns: int, num_inputs: int) -> float:
    """Half the columns for each input, between 0.01 and 0.3."""
    return min(MOST_DAMPING, max(LEAST_DAMPING, 0.5 * num_columns / max(1, num_inputs)))


def quantize_by_inputs(
    weight_OI: Tensor, moments: InputMoments, bits: int, group_size: int = 0, damping: float | None = None
) -> Rounded:
    """The weight in the packed format, rounded by GPTQ; scales have the types of `quantize_rows`.

    `moments` is H. `damping` (None: `usual_damping`) times H's mean diagonal is added to its diagonal, ten times as
    much, and again, while H cannot be factored. Columns that were zero in all inputs round to the nearest.
    Raises InvalidRequestError for a wrong width, groups or damping, or if H holds NaN or infinity.
    """
    check_bits(bits, weight_OI.shape[1])
    check_group_size(group_size, weight_OI.shape[1])
    moments_II = moments.sum_II
    damping = usual_damping(weight_OI.shape[1], moments.num_inputs) if damping is None else damping
    check_damping(damping)
    if not bool(torch.isfinite(moments_II).all()):
        raise InvalidRequestError("The inputs of a layer are not finite.", "Are the weights sound, and the text?")
    dtype = torch.float64 if weight_OI.shape[1] <= MOST_COLUMNS_IN_FLOAT64 else torch.float32
    scale = _search_scale(weight_OI, moments_II.diagonal(), bits, group_size)
    order = moments_II.diagonal().argsort(descending=True, stable=True)
    reversed_order = order.flip(0)
    inverse_II, used = _factor_of_inverse(moments_II[reversed_order][:, reversed_order].to(dtype), damping)
    per_column = scale.repeat_interleave(group_size or weight_OI.shape[1], dim=1)[:, order]
    rounded_OI = _round_columns(weight_OI.to(dtype)[:, order], per_column.to(dtype), inverse_II, bits)
    integers_OI = torch.empty_like(rounded_OI)
    integers_OI[:, order] = rounded_OI
    return Rounded(pack(integers_OI, bits), scale if group_size else scale[:, 0], used)


def check_damping(damping: float) -> None:
    """Raise InvalidRequestError unless it is a positive number."""
    if not (math.isfinite(damping) and damping > 0):
        raise InvalidRequestError(f"The damping is a number above 0, not {damping!r}.", "0.01 to 0.3 are usual.")


def _search_scale(weight_OI: Tensor, importance_I: Tensor, bits: int, group_size: int) -> Tensor:
    """Scales [O, G] (G = 1 without groups) with the least sum of importance * error^2 when rounding to the nearest."""
    num_columns = weight_OI.shape[1]
    # A row whose inputs were all zero still wants a scale: every column counts a little.
    importance = (importance_I + LEAST_DAMPING * importance_I.mean() + torch.finfo(torch.float32).tiny).float()
    importance_Gg = importance.view(-1, group_size or num_columns)
    is_half = bool(group_size) or weight_OI.dtype != torch.float32
    rows_at_once = max(1, WEIGHTS_AT_ONCE // num_columns)
    return torch.cat([_search_rows(part, importance_Gg, bits, is_half) for part in weight_OI.split(rows_at_once)])


def _search_rows(weight_OI: Tensor, importance_Gg: Tensor, bits: int, is_half: bool) -> Tensor:
    weight_OGg = weight_OI.float().unflatten(1, importance_Gg.shape)
    full_OG = weight_OGg.abs().amax(dim=2) / largest(bits)
    best_OG, least_OG = full_OG, torch.full_like(full_OG, math.inf)
    for part in SHRINKAGES:
        scale_OG = half_scale(full_OG * part).float() if is_half else full_OG * part
        step = scale_OG[..., None]
        error_OG = (round_to(weight_OGg, step, bits) * step - weight_OGg).square_().mul_(importance_Gg).sum(dim=2)
        is_better = error_OG < least_OG
        best_OG, least_OG = torch.where(is_better, scale_OG, best_OG), torch.where(is_better, error_OG, least_OG)
    return best_OG.half() if is_half else best_OG


def _factor_of_inverse(reversed_II: Tensor, damping: float) -> tuple[Tensor, float]:
    """Upper triangular U, U^T U = (H + damping * mean diagonal * 1)^-1, and the damping used; changes `reversed_II`."""
    mean = float(reversed_II.diagonal().mean()) or 1.0  # all inputs were zero: any H rounds to the nearest
    added = 0.0
    while True:
        reversed_II.diagonal().add_((damping - added) * mean)
        lower_II, fault = torch.linalg.cholesky_ex(reversed_II)
        if not int(fault) and bool(torch.isfinite(lower_II.diagonal()).all()):
            break
        added, damping = damping, 10 * damping
    # H in reverse order is L L^T, so H = R R^T with R = L flipped, upper triangular, and U = R^-1: no inverse of H.
    identity = torch.eye(len(reversed_II), dtype=reversed_II.dtype, device=reversed_II.device)
    return torch.linalg.solve_triangular(lower_II.flip(0, 1), identity, upper=True), damping


def _round_columns(weight_OI: Tensor, scale_OI: Tensor, inverse_II: Tensor, bits: int) -> Tensor:
    """Integers (int8) [O, I], column after column; the weight is changed on the way."""
    integers_OI = torch.empty_like(weight_OI, dtype=torch.int8)
    for start in range(0, weight_OI.shape[1], COLUMNS_AT_ONCE):
        stop = min(start + COLUMNS_AT_ONCE, weight_OI.shape[1])
        block_OB = weight_OI[:, start:stop].clone()
        errors_OB = torch.empty_like(block_OB)
        corner_BB = inverse_II[start:stop, start:stop]
        for column in range(stop - start):
            scale_O = scale_OI[:, start + column]
            integers_O = round_to(block_OB[:, column], scale_O, bits)
            integers_OI[:, start + column] = integers_O
            error_O = (block_OB[:, column] - integers_O * scale_O) / corner_BB[column, column]
            block_OB[:, column + 1 :].addr_(error_O, corner_BB[column, column + 1 :], alpha=-1)
            errors_OB[:, column] = error_O
        weight_OI[:, stop:].addmm_(errors_OB, inverse_II[start:stop, stop:], alpha=-1)
    return integers_OI
