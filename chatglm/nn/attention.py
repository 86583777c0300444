"""Scaled dot-product attention over a given visibility.

Knows: softmax(q k / sqrt(D)) v, fused or with the probabilities written out. Does not know who may see whom.
Shapes: B rows, H heads, T query positions, S key positions, D head width.

The original divides queries by (layer + 1) before the product and multiplies the scores by it afterwards. The pair
cancels; it kept half-precision scores from overflowing, which torch's fused kernels avoid by accumulating in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def attend(query_BHTD: Tensor, key_BHSD: Tensor, value_BHSD: Tensor, visible: Tensor | None) -> Tensor:
    """Attention output [B, H, T, D].

    Args:
        query_BHTD: queries, already rotated.
        key_BHSD: keys, already rotated.
        value_BHSD: values.
        visible: bool, broadcastable to [B, H, T, S], True = may be seen; None = everything is visible.
            Every row must see at least one key.
    """
    return F.scaled_dot_product_attention(query_BHTD, key_BHSD, value_BHSD, attn_mask=visible)


def attend_with_probabilities(
    query_BHTD: Tensor, key_BHSD: Tensor, value_BHSD: Tensor, visible: Tensor | None
) -> tuple[Tensor, Tensor]:
    """As `attend`, and the probabilities [B, H, T, S]; softmax in float32."""
    scores_BHTS = (query_BHTD @ key_BHSD.transpose(-1, -2)).float() * query_BHTD.shape[-1] ** -0.5
    if visible is not None:
        scores_BHTS = scores_BHTS.masked_fill(~visible, -torch.inf)
    probabilities = scores_BHTS.softmax(dim=-1).to(value_BHSD.dtype)
    return probabilities @ value_BHSD, probabilities
