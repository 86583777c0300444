"""What lies between the products of a decode step, one call each: a Triton kernel where there is one, or plain torch.

Nothing is read on the host, and shapes follow from shapes: a step of such calls can be captured and replayed.

    keys, values    of a layer, each [N, H, P, D]: float16, bfloat16 or float32, contiguous
    table           int32 [B, M]: the pages of each row in order, then any page's number
    lengths         int32 [B]: positions of each row with this step's, at least 1; past its table = a full table
    padding row     fills up a batch: a table of zeros and length 1; page 0 belongs to such rows

Shapes: B rows, H heads, D head width, C = H * D, N pages, P positions of a page, M pages of a table.
"""

from __future__ import annotations

import torch
from torch import Tensor

from chatglm.kernels import reference
from chatglm.kernels.triton.availability import is_available

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


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
    """Rotate queries and keys of one new position of each row; store keys and values in the pages, in the pages' type.

    qkv_BE is [B, 3C], per head query | key | value; cos_BD and sin_BD are of `nn.rotary.head_tables`, in its type. A
    head is rotated in `rotary_dims` parts (1 or 2); 2 * rotary_dims divides D.
    Returns rotated queries [B, H, D], rounded as by `nn.rotary.rotate`. Raises ValueError for tensors of other forms.
    """
    _check(keys, values, table_BM, lengths_B)
    num_rows, (num_heads, width) = len(lengths_B), keys.shape[1::2]
    if qkv_BE.shape != (num_rows, 3 * num_heads * width) or not cos_BD.shape == sin_BD.shape == (num_rows, width):
        raise ValueError("rotate_and_store takes query, key and value of every head, and cos and sin, of every row")
    if width % (2 * rotary_dims):
        raise ValueError(f"a head of {width} does not divide into {rotary_dims} parts of two halves")
    if _is_taken(qkv_BE, keys):
        from chatglm.kernels.triton.triton_rotary import operator

        return operator(qkv_BE, cos_BD, sin_BD, keys, values, table_BM, lengths_B, rotary_dims)
    return reference.rotate_and_store(qkv_BE, cos_BD, sin_BD, keys, values, table_BM, lengths_B, rotary_dims)


def decode_attention(query_BHD: Tensor, keys: Tensor, values: Tensor, table_BM: Tensor, lengths_B: Tensor) -> Tensor:
    """softmax(q k / sqrt(D)) v over the stored positions of each row, in float32; [B, H, D] in the queries' type.

    Queries are rotated, the newest position is stored. A row's bits do not depend on batch, slot or width of the table,
    with the kernel. Raises ValueError for other forms.
    """
    _check(keys, values, table_BM, lengths_B)
    if query_BHD.shape != (len(lengths_B), *keys.shape[1::2]):
        raise ValueError("decode_attention takes one query of every row and head")
    if _is_taken(query_BHD, keys):
        from chatglm.kernels.triton.triton_attention import MAX_WIDTH, operator

        if keys.shape[3] <= MAX_WIDTH:
            return operator(query_BHD, keys, values, table_BM, lengths_B)
    return reference.decode_attention(query_BHD, keys, values, table_BM, lengths_B)


def residual_norm(
    branch: Tensor,
    residual_BC: Tensor,
    alpha: float,
    weight_C: Tensor,
    bias_C: Tensor,
    eps: float,
    branch_bias_C: Tensor | None = None,
) -> Tensor:
    """LayerNorm(branch + branch_bias + alpha * residual), [B, C] in the residual's type; ValueError for other forms.

    `branch` is [B, C], or partial products [S, B, C] in float32 that are summed here. The kernel computes in float32;
    plain torch rounds the product and the sum to the residual's type, as the plain network does.
    """
    if branch.dim() not in (2, 3) or branch.shape[-2:] != residual_BC.shape:
        raise ValueError("residual_norm takes a branch of the residual's shape, or several")
    if _is_taken(residual_BC, branch):
        from chatglm.kernels.triton.triton_norm import MAX_WIDTH, operator

        if residual_BC.shape[1] <= MAX_WIDTH:
            return operator(branch, residual_BC, alpha, weight_C, bias_C, eps, branch_bias_C)
    return reference.residual_norm(branch, residual_BC, alpha, weight_C, bias_C, eps, branch_bias_C)


def _check(keys: Tensor, values: Tensor, table_BM: Tensor, lengths_B: Tensor) -> None:
    # The kernels read and write where they are told: what is wrong must be found here.
    is_store = keys.dim() == 4 and keys.shape == values.shape and keys.dtype is values.dtype
    is_whole = all(x.is_contiguous() for x in (keys, values, table_BM, lengths_B))
    is_numbers = table_BM.dtype is lengths_B.dtype is torch.int32
    if not (is_store and is_whole and is_numbers and table_BM.shape[:-1] == lengths_B.shape and lengths_B.dim() == 1):
        raise ValueError("a step takes stores [N, H, P, D], a table int32 [B, M] and lengths int32 [B], contiguous")


def _is_taken(first: Tensor, second: Tensor) -> bool:
    return first.dtype in DTYPES and second.dtype in DTYPES and is_available(first.device)
