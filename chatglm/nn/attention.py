"""Scaled dot-product attention over a given visibility: softmax(q k / sqrt(D)) v.

Upstream's division of queries by (layer + 1), undone after the product, only kept half-precision scores from
overflowing: torch's fused kernels accumulate in float32 and need none.
Shapes: B rows, H query heads, G key and value heads (H = n * G), T query positions, S key positions, D head width.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor
from torch.nn import functional as F


class _WithoutCudnn:
    """Within it torch does not use cuDNN, which makes a plan (tens of ms) for every new shape in every thread.

    The switch belongs to the process: the first thread turns it, the last one restores it. Only the host reads it, so a
    graph may be captured within.
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


class Causal:
    """In the place of a mask: the T positions are the last of S, and see themselves and all before. It has no size."""

    def mask(self, num_new: int, num_keys: int, device: torch.device) -> Tensor:
        return causal_mask(num_new, num_keys, device)


CAUSAL = Causal()


def attend(query_BHTD: Tensor, key_BGSD: Tensor, value_BGSD: Tensor, visible: Tensor | Causal | None) -> Tensor:
    """Attention output [B, H, T, D] for rotated queries and keys; each key head serves H / G neighbouring query heads.

    `visible` is bool, broadcastable to [B, H, T, S], True = visible, at least one key in every row; None = all visible.
    """
    is_causal = isinstance(visible, Causal) and query_BHTD.shape[2] == key_BGSD.shape[2]
    visible = None if is_causal else _mask(visible, query_BHTD, key_BGSD)
    num_heads, num_groups, shape = query_BHTD.shape[1], key_BGSD.shape[1], query_BHTD.shape
    grouped = num_heads != num_groups
    if grouped and shape[2] == 1 and (visible is None or visible.shape[1] == 1):
        # The queries of a group as positions of one head: on a CPU torch would read the keys once for every head.
        query_BHTD, grouped = query_BHTD.reshape(shape[0], num_groups, num_heads // num_groups, shape[3]), False

    def attention() -> Tensor:
        mixed = F.scaled_dot_product_attention(
            query_BHTD, key_BGSD, value_BGSD, attn_mask=visible, is_causal=is_causal, enable_gqa=grouped
        )
        return mixed.reshape(shape)

    # What torch compiles has few shapes, and it cannot trace a lock.
    if not query_BHTD.is_cuda or torch.compiler.is_compiling():
        return attention()
    with _without_cudnn:
        return attention()


def _mask(visible: Tensor | Causal | None, query_BHTD: Tensor, key_BGSD: Tensor) -> Tensor | None:
    if not isinstance(visible, Causal):
        return visible
    return visible.mask(query_BHTD.shape[2], key_BGSD.shape[2], query_BHTD.device)


def causal_mask(num_new: int, num_keys: int, device: torch.device) -> Tensor:
    """bool [1, 1, T, S]: the last `num_new` of S positions each see themselves and all before."""
    return torch.ones(num_new, num_keys, dtype=torch.bool, device=device).tril(num_keys - num_new)[None, None]


def causal_after(num_past: int, position_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor | None:
    """All of the past, causal among the new: bool [B or 1, 1, T, num_past + T]; None when that is everything."""
    num_new = position_ids.shape[-1]
    if num_new == 1 and (attention_mask is None or bool(attention_mask.all())):
        return None
    seen = causal_mask(num_new, num_past + num_new, position_ids.device)
    if attention_mask is None:
        return seen
    return some_visible(seen & attention_mask.bool()[:, None, None])


def some_visible(visible: Tensor) -> Tensor:
    """Let a query that sees nothing (a pad) see everything, so that its unread output is finite."""
    return visible | ~visible.any(dim=-1, keepdim=True)


def attend_with_probabilities(
    query_BHTD: Tensor, key_BGSD: Tensor, value_BGSD: Tensor, visible: Tensor | Causal | None
) -> tuple[Tensor, Tensor]:
    """As `attend`, and the probabilities [B, H, T, S]; softmax in float32."""
    repeats = query_BHTD.shape[1] // key_BGSD.shape[1]
    key_BHSD, value_BHSD = (x.repeat_interleave(repeats, dim=1) for x in (key_BGSD, value_BGSD))
    scores_BHTS = (query_BHTD @ key_BHSD.transpose(-1, -2)).float() * query_BHTD.shape[-1] ** -0.5
    if (mask := _mask(visible, query_BHTD, key_BGSD)) is not None:
        scores_BHTS = scores_BHTS.masked_fill(~mask, -torch.inf)
    probabilities = scores_BHTS.softmax(dim=-1).to(value_BHSD.dtype)
    return probabilities @ value_BHSD, probabilities
