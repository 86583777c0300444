"""The kernels' references in plain torch operators, on any device: what every kernel is compared with.

Decode steps can be captured or run on fake tensors: no host reads, no indexing in brackets (it asks the driver).
Shapes: M rows of activations, O rows of weights, I columns; B rows of a step, H heads, D head width, C = H * D, N
pages, P positions of a page, M pages of a table, S = M * P. Position p of a row is in page table[p // P] at p % P.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from chatglm.kernels.packing import dequantize

ACTIVATION_GROUP = 64
# Rows whose keys and values are gathered at a time: each takes two copies of all it could store.
ROWS_AT_ONCE = 16


def linear(x: Tensor, weight: Tensor, scale: Tensor, bits: int, bias: Tensor | None) -> Tensor:
    """x W^T + bias with W written out in x's type; arguments as `chatglm.kernels.linear`."""
    product = x @ dequantize(weight, scale, bits, x.dtype).T
    return product if bias is None else product + bias.to(x.dtype)


def rounded_activations(x_MI: Tensor) -> Tensor:
    """Activations as the integer kernels see them, in float64 [M, I]; a group that is not finite is all NaN.

    q = round_half_even(x / scale) with scale = max|x| / 127 over each 64 neighbouring columns, both in float32.
    """
    num_rows, num_columns = x_MI.shape
    groups = F.pad(x_MI.float(), (0, -num_columns % ACTIVATION_GROUP)).view(num_rows, -1, ACTIVATION_GROUP)
    scale = groups.abs().amax(dim=-1, keepdim=True) / 127
    scale = torch.where(scale.isfinite(), scale, torch.nan)
    integers = torch.where(scale == 0, 0, groups / scale).round().clamp(-127, 127)
    return (integers.double() * scale.double()).view(num_rows, -1)[:, :num_columns]


def rotate_and_store(
    qkv_BE: Tensor,
    cos_BD: Tensor,
    sin_BD: Tensor,
    keys: Tensor,
    values: Tensor,
    table_BM: Tensor,
    lengths_B: Tensor,
    rotary_dims: int,
) -> Tensor:
    """Queries [B, H, D]; arguments as `chatglm.kernels.rotate_and_store`."""
    num_heads, page_size, width = keys.shape[1:]
    query_BHD, key_BHD, value_BHD = qkv_BE.view(-1, num_heads, 3 * width).split(width, dim=-1)
    tables = cos_BD.unsqueeze(1), sin_BD.unsqueeze(1)
    position_B1 = (lengths_B.long() - 1).clamp(max=table_BM.shape[1] * page_size - 1).unsqueeze(1)
    page_B1 = table_BM.long().gather(1, position_B1 // page_size)
    heads_H = torch.arange(num_heads, device=keys.device)
    place_BH = (page_B1 * num_heads + heads_H) * page_size + position_B1 % page_size
    for store, new_BHD in ((keys, _rotated(key_BHD, *tables, rotary_dims)), (values, value_BHD)):
        store.view(-1, width).index_copy_(0, place_BH.flatten(), new_BHD.flatten(0, 1).to(store.dtype))
    return _rotated(query_BHD, *tables, rotary_dims)


def decode_attention(query_BHD: Tensor, keys: Tensor, values: Tensor, table_BM: Tensor, lengths_B: Tensor) -> Tensor:
    """Attention output [B, H, D]; arguments as `chatglm.kernels.decode_attention`."""
    chunks = zip(
        query_BHD.split(ROWS_AT_ONCE), table_BM.split(ROWS_AT_ONCE), lengths_B.split(ROWS_AT_ONCE), strict=True
    )
    return torch.cat([_attend(query, keys, values, table, lengths) for query, table, lengths in chunks])


def residual_norm(
    branch: Tensor,
    residual_BC: Tensor,
    alpha: float,
    weight_C: Tensor,
    bias_C: Tensor,
    eps: float,
    branch_bias_C: Tensor | None = None,
) -> Tensor:
    """The norm [B, C]; product, sum and norm are each rounded. Arguments as `chatglm.kernels.residual_norm`."""
    if branch.dim() == 3:
        branch = sum(branch.unbind()[1:], branch.select(0, 0))
    if branch_bias_C is not None:
        branch = branch + branch_bias_C
    total_BC = torch.add(branch.to(residual_BC.dtype), residual_BC, alpha=alpha)
    return F.layer_norm(total_BC, weight_C.shape, weight_C, bias_C, eps)


def _rotated(x_BHD: Tensor, cos: Tensor, sin: Tensor, rotary_dims: int) -> Tensor:
    """As `chatglm.nn.rotary.rotate`, with its rounding: both products and their sum, each in x's type."""
    first, second = x_BHD.unflatten(-1, (rotary_dims, 2, -1)).unbind(-2)
    return x_BHD * cos + torch.stack((-second, first), dim=-2).flatten(-3) * sin


def _attend(query_BHD: Tensor, keys: Tensor, values: Tensor, table_BM: Tensor, lengths_B: Tensor) -> Tensor:
    key_BHSD, value_BHSD = (_gathered(store, table_BM) for store in (keys, values))
    is_unused_BS = torch.arange(key_BHSD.shape[2], device=keys.device) >= lengths_B.unsqueeze(1)
    scores_BHS = (key_BHSD @ query_BHD.float().unsqueeze(-1)).squeeze(-1) * query_BHD.shape[-1] ** -0.5
    weights_BHS = scores_BHS.masked_fill(is_unused_BS.unsqueeze(1), -torch.inf).softmax(dim=-1)
    # Places that were never written may hold anything, and 0 * NaN is not 0.
    value_BHSD = value_BHSD.masked_fill(is_unused_BS.view(-1, 1, key_BHSD.shape[2], 1), 0)
    return (weights_BHS.unsqueeze(2) @ value_BHSD).squeeze(2).to(query_BHD.dtype)


def _gathered(store: Tensor, table_BM: Tensor) -> Tensor:
    """What the pages of each row hold, in float32 [B, H, S, D]."""
    pages = store.index_select(0, table_BM.flatten()).unflatten(0, table_BM.shape)
    return pages.transpose(1, 2).flatten(2, 3).float()
