"""Products with packed weights in plain torch operators: the truth that every kernel is compared with.

Knows: dequantizing and multiplying, on any device; how the integer kernels round activations. Does not know speed.
Shapes: M rows of activations, O rows of weights, I columns.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from chatglm.kernels.packing import dequantize

ACTIVATION_GROUP = 64


def linear(x: Tensor, weight: Tensor, scale: Tensor, bits: int, bias: Tensor | None) -> Tensor:
    """x W^T + bias with W written out in x's type; arguments as `chatglm.kernels.linear`."""
    product = x @ dequantize(weight, scale, bits, x.dtype).T
    return product if bias is None else product + bias.to(x.dtype)


def rounded_activations(x_MI: Tensor) -> Tensor:
    """Activations as the integer kernels see them, in float64 [M, I].

    q = round_half_even(x / scale) with scale = max|x| / 127 over each 64 neighbouring columns, both computed in
    float32. A group that is not finite is not-a-number throughout, so that it shows in the result.
    """
    num_rows, num_columns = x_MI.shape
    groups = F.pad(x_MI.float(), (0, -num_columns % ACTIVATION_GROUP)).view(num_rows, -1, ACTIVATION_GROUP)
    scale = groups.abs().amax(dim=-1, keepdim=True) / 127
    scale = torch.where(scale.isfinite(), scale, torch.nan)
    integers = torch.where(scale == 0, 0, groups / scale).round().clamp(-127, 127)
    return (integers.double() * scale.double()).view(num_rows, -1)[:, :num_columns]
