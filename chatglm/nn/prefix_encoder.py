"""The trainable prefix of P-Tuning v2: keys and values that stand in front of every layer's own.

Source: Liu et al., "P-Tuning v2", https://arxiv.org/abs/2110.07602; tensor names as upstream's checkpoints.
Shapes: P prefix length, B rows, L layers, H heads of keys and values, D head width, C = H * D.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from chatglm.model_spec import ModelSpec


class PrefixEncoder(nn.Module):
    """Embedding(P, 2LC), or Embedding(P, E) -> Linear(E, I) -> tanh -> Linear(I, 2LC) with projection."""

    def __init__(self, spec: ModelSpec, pre_seq_len: int, has_projection: bool) -> None:
        super().__init__()
        self.view = (pre_seq_len, 2 * spec.num_layers, spec.num_kv_heads, spec.head_width)
        entry, inner = spec.prefix_projection
        self.embedding = nn.Embedding(pre_seq_len, entry if has_projection else spec.prefix_width)
        self.trans: nn.Sequential | None = None
        if has_projection:
            self.trans = nn.Sequential(nn.Linear(entry, inner), nn.Tanh(), nn.Linear(inner, spec.prefix_width))
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
