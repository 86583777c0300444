"""Queries and keys rotated by their positions, keys and values stored in their pages: one Triton kernel.

    qkv of a row                    | q k v | q k v | ...      one head after another; q -> result, k, v -> pages
    rotary dimensions, R = D/2      | a0 .. | b0 .. | a1 .. | b1 .. |      a' = a cos - b sin,  b' = b cos + a sin

Padding rows all write to the same place of page 0, in any order; it is never read.
Shapes: B rows, H heads, D head width, C = H * D, N pages, P positions of a page, M pages of a table.
"""

# The functions that Triton compiles have no types.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from chatglm.kernels.triton.launching import at

# Heads of a program of one warp: with heads of 128 every thread has 8 neighbouring elements of each half.
HEADS = 4


@triton.jit
def _rotate(a, b, cos_a, sin_a, cos_b, sin_b):
    """Both halves of rotated heads; each product and the sum are rounded to the type of what is rotated."""
    dtype = a.dtype
    a, b = a.to(tl.float32), b.to(tl.float32)
    rotated_a = (a * cos_a).to(dtype).to(tl.float32) - (b * sin_a).to(dtype).to(tl.float32)
    rotated_b = (b * cos_b).to(dtype).to(tl.float32) + (a * sin_b).to(dtype).to(tl.float32)
    return rotated_a.to(dtype), rotated_b.to(dtype)


@triton.jit(do_not_specialize=["table_width"])
def rotate_and_store(
    qkv,
    cos,
    sin,
    keys,
    values,
    table,
    lengths,
    query,
    num_heads,
    table_width,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ROTARY_DIMS: tl.constexpr,
    PAGE: tl.constexpr,
    HEADS: tl.constexpr,
):
    """Grid: groups of heads, rows. BLOCK: D / 2, or the next power of two."""
    row = tl.program_id(1)
    half: tl.constexpr = WIDTH // ROTARY_DIMS // 2
    index = tl.arange(0, BLOCK)
    column = (index // half) * (2 * half) + index % half
    is_column = index < WIDTH // 2
    head = tl.program_id(0) * HEADS + tl.arange(0, HEADS)
    is_there = (head < num_heads)[:, None] & is_column[None, :]
    row_head = row * num_heads + head
    source = qkv + row_head[:, None] * (3 * WIDTH) + column[None, :]
    length = tl.load(lengths + row)
    query_a = tl.load(source, mask=is_there, other=0.0)
    query_b = tl.load(source + half, mask=is_there, other=0.0)
    key_a = tl.load(source + WIDTH, mask=is_there, other=0.0)
    key_b = tl.load(source + WIDTH + half, mask=is_there, other=0.0)
    value_a = tl.load(source + 2 * WIDTH, mask=is_there, other=0.0)
    value_b = tl.load(source + 2 * WIDTH + half, mask=is_there, other=0.0)
    # Nothing is used before all of it is on its way: ptxas would rather wait for each in turn, to save registers. It
    # moves no load over a barrier, and nothing is rotated without cos and sin.
    tl.debug_barrier()
    angle = row * WIDTH + column
    cos_a = tl.load(cos + angle, mask=is_column, other=0.0).to(tl.float32)[None, :]
    sin_a = tl.load(sin + angle, mask=is_column, other=0.0).to(tl.float32)[None, :]
    cos_b = tl.load(cos + angle + half, mask=is_column, other=0.0).to(tl.float32)[None, :]
    sin_b = tl.load(sin + angle + half, mask=is_column, other=0.0).to(tl.float32)[None, :]
    position = tl.minimum(length, table_width * PAGE) - 1
    page = tl.load(table + row * table_width + position // PAGE).to(tl.int64)
    place = (page * num_heads + head) * PAGE + position % PAGE
    target = place[:, None] * WIDTH + column[None, :]

    query_a, query_b = _rotate(query_a, query_b, cos_a, sin_a, cos_b, sin_b)
    key_a, key_b = _rotate(key_a, key_b, cos_a, sin_a, cos_b, sin_b)
    own = query + row_head[:, None] * WIDTH + column[None, :]
    tl.store(own, query_a, mask=is_there)
    tl.store(own + half, query_b, mask=is_there)
    tl.store(keys + target, key_a.to(keys.dtype.element_ty), mask=is_there)
    tl.store(keys + target + half, key_b.to(keys.dtype.element_ty), mask=is_there)
    tl.store(values + target, value_a.to(values.dtype.element_ty), mask=is_there)
    tl.store(values + target + half, value_b.to(values.dtype.element_ty), mask=is_there)


def launch(
    qkv_BE: Tensor,
    cos_BD: Tensor,
    sin_BD: Tensor,
    keys: Tensor,
    values: Tensor,
    table_BM: Tensor,
    lengths_B: Tensor,
    rotary_dims: int,
    query_BHD: Tensor,
) -> None:
    """Fill `query_BHD` and the pages; arguments as `chatglm.kernels.rotate_and_store`, all contiguous."""
    num_heads, page_size, width = keys.shape[1:]
    rotate_and_store[triton.cdiv(num_heads, HEADS), qkv_BE.shape[0]](
        qkv_BE, cos_BD, sin_BD, keys, values, table_BM, lengths_B, query_BHD, num_heads, table_BM.shape[1],
        WIDTH=width, BLOCK=triton.next_power_of_2(width // 2), ROTARY_DIMS=rotary_dims, PAGE=page_size,
        HEADS=HEADS, num_warps=1,
    )  # fmt: skip


@torch.library.custom_op("chatglm::rotate_and_store", mutates_args=("keys", "values"), device_types="cuda")
def operator(
    qkv_BE: Tensor,
    cos_BD: Tensor,
    sin_BD: Tensor,
    keys: Tensor,
    values: Tensor,
    table_BM: Tensor,
    lengths_B: Tensor,
    rotary_dims: int,
) -> Tensor:
    """`launch` as an operator of torch: it runs on fake tensors and in graphs, on the device of its tensors."""
    query_BHD = qkv_BE.new_empty((qkv_BE.shape[0], keys.shape[1], keys.shape[3]))
    qkv_BE, cos_BD, sin_BD = qkv_BE.contiguous(), cos_BD.contiguous(), sin_BD.contiguous()
    with at(qkv_BE):
        launch(qkv_BE, cos_BD, sin_BD, keys, values, table_BM, lengths_B, rotary_dims, query_BHD)
    return query_BHD


@operator.register_fake
def _(qkv_BE: Tensor, cos_BD: Tensor, sin_BD: Tensor, keys: Tensor, *_others: object) -> Tensor:
    return qkv_BE.new_empty((qkv_BE.shape[0], keys.shape[1], keys.shape[3]))
