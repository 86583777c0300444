"""The trainable prefix of P-Tuning v2: keys and values that stand in front of every layer's own.

Source: Liu et al., "P-Tuning v2", https://arxiv.org/abs/2110.07602; tensor names as upstream's checkpoints.
Shapes: P prefix length, B rows, L layers, H heads of keys and values, D head width, C = H * D.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PrefixEncoder(nn.Module):
    """Embedding(P, 2LC), or Embedding(P, C) -> Linear -> tanh -> Linear(C, 2LC) with `projection`."""

    def __init__(
        self, pre_seq_len: int, num_layers: int, num_heads: int, head_width: int, projection: bool = False
    ) -> None:
        super().__init__()
        width = num_heads * head_width
        self.view = (pre_seq_len, 2 * num_layers, num_heads, head_width)
        self.embedding = nn.Embedding(pre_seq_len, width if projection else 2 * num_layers * width)
        self.trans: nn.Sequential | None = None
        if projection:
            self.trans = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 2 * num_layers * width))
        self.dropout = nn.Dropout(0.1)

    def forward(self, num_rows: int, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
        """One (key, value) pair per layer, each [B, H, P, D] in `dtype`; keys are not rotated."""
        prefix = self.embedding.weight
        if self.trans is not None:
            prefix = self.trans(prefix)
        # The cast comes before the dropout, and both are done per row, as upstream does.
        prefix_BPLHD = self.dropout(prefix.view(self.view).expand(num_rows, *self.view).to(dtype))
        per_layer = prefix_BPLHD.permute(2, 0, 3, 1, 4).split(2)
        return [(pair[0], pair[1]) for pair in per_layer]
