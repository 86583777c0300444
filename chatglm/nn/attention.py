"""Scaled dot-product attention over a given visibility: softmax(q k / sqrt(D)) v.

Shapes: B rows, H query heads, G key and value heads (H is a multiple of G), T query positions, S key positions,
D head width.

Upstream divides queries by (layer + 1) before the product and multiplies the scores by it afterwards. The pair
cancels; it kept half-precision scores from overflowing, which torch's fused kernels avoid by accumulating in float32.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor
from torch.nn import functional as F


class _WithoutCudnn:
    """Within it torch does not let cuDNN attend; its other kernels stay as the caller has switched them.

    cuDNN makes a plan for every new shape, tens of milliseconds and more, in every thread anew, and is torch's first
    choice on some cards. The length of a prompt is nearly always new, and with a growing cache that of every token is.

    The switch belongs to the process: the first thread that comes turns it, the last one that leaves turns it back.
    Only the host reads it, so a graph may be captured within.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_inside = 0
        self._was_on = True

    def __enter__(self) -> None:
        with self._lock:
            if self._num_inside == 0:
                self._was_on = torch.backends.cuda.cudnn_sdp_enabled()
                torch.backends.cuda.enable_cudnn_sdp(False)
            self._num_inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._num_inside -= 1
            if self._num_inside == 0:
                torch.backends.cuda.enable_cudnn_sdp(self._was_on)


_without_cudnn = _WithoutCudnn()


def attend(query_BHTD: Tensor, key_BGSD: Tensor, value_BGSD: Tensor, visible: Tensor | None) -> Tensor:
    """Attention output [B, H, T, D].

    Args:
        query_BHTD: queries, already rotated.
        key_BGSD: keys, already rotated; each serves H / G neighbouring query heads.
        value_BGSD: values.
        visible: bool, broadcastable to [B, H, T, S], True = may be seen; None = everything is visible.
            Every row must see at least one key.
    """
    grouped = query_BHTD.shape[1] != key_BGSD.shape[1]

    def attention() -> Tensor:
        return F.scaled_dot_product_attention(query_BHTD, key_BGSD, value_BGSD, attn_mask=visible, enable_gqa=grouped)

    # What torch compiles has few shapes, and it cannot trace a lock.
    if not query_BHTD.is_cuda or torch.compiler.is_compiling():
        return attention()
    with _without_cudnn:
        return attention()


def causal_mask(num_new: int, num_keys: int, device: torch.device) -> Tensor:
    """bool [1, 1, T, S]: the last `num_new` of S positions each see themselves and all before."""
    return torch.ones(num_new, num_keys, dtype=torch.bool, device=device).tril(num_keys - num_new)[None, None]


def attend_with_probabilities(
    query_BHTD: Tensor, key_BGSD: Tensor, value_BGSD: Tensor, visible: Tensor | None
) -> tuple[Tensor, Tensor]:
    """As `attend`, and the probabilities [B, H, T, S]; softmax in float32."""
    repeats = query_BHTD.shape[1] // key_BGSD.shape[1]
    key_BHSD, value_BHSD = (x.repeat_interleave(repeats, dim=1) for x in (key_BGSD, value_BGSD))
    scores_BHTS = (query_BHTD @ key_BHSD.transpose(-1, -2)).float() * query_BHTD.shape[-1] ** -0.5
    if visible is not None:
        scores_BHTS = scores_BHTS.masked_fill(~visible, -torch.inf)
    probabilities = scores_BHTS.softmax(dim=-1).to(value_BHSD.dtype)
    return probabilities @ value_BHSD, probabilities
