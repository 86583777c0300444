"""A linear layer with a low-rank update beside it: base(x) + scale * B A x.

Knows: this sum. Does not know what the base is made of (packed weights, for instance) or where the update comes from.
Source: Hu et al., "LoRA", https://arxiv.org/abs/2106.09685. Shapes: r rank, I and O widths of the layer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LowRankLinear(nn.Module):
    """`base` with the update [O, r] [r, I] computed beside it; for weights that it cannot be added to."""

    def __init__(self, base: nn.Module, down_rI: Tensor, up_Or: Tensor, scale: float) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Parameter(down_rI, requires_grad=False)
        self.up = nn.Parameter(up_Or * scale, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        down, up = self.down.to(x.dtype), self.up.to(x.dtype)
        return self.base(x) + F.linear(F.linear(x, down), up)


@torch.no_grad()
def add_update(weight_OI: Tensor, down_rI: Tensor, up_Or: Tensor, scale: float) -> None:
    """Add scale * B A to a weight in place; the sum is made in float32."""
    update = scale * (up_Or.float() @ down_rI.float())
    weight_OI.copy_(weight_OI.float() + update.to(weight_OI.device))
