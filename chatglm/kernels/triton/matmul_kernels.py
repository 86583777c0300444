"""Triton kernels of products with packed weights: a tile of x W^T, and the sum of partial products.

A block multiplies BN rows of the weight (left operand) by BM tokens, BK bytes of each row per iteration. int4 splits x
into even and odd columns: two products per tile. Integers are summed in float32; the scale comes once per row or group.
"""

from __future__ import annotations

import triton
import triton.language as tl

from chatglm.kernels.triton.unpack import unpack_int4, unpack_int8


@triton.jit
def gelu_tanh(x):
    """0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), written with the sigmoid."""
    return x * tl.sigmoid(1.5957691216057308 * x * (1 + 0.044715 * x * x))


@triton.jit(do_not_specialize=["M"])
def product_kernel(
    x,
    weight,
    scale,
    bias,
    y,
    M,
    N: tl.constexpr,
    ROW_BYTES: tl.constexpr,
    BITS: tl.constexpr,
    GROUP_BYTES: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    SPLITS: tl.constexpr,
    GELU: tl.constexpr,
    ASM: tl.constexpr,
):
    """One part of one tile: y[part, token, row] = scale * sum over the part's columns, with one part + bias, GELU.

    Grid: (tiles of M, tiles of N, SPLITS). x [M, K] contiguous, weight [N, ROW_BYTES], scale [N] or [N, groups],
    bias [N] or None, y [SPLITS, M, N]. Groups need BK == GROUP_BYTES, else GROUP_BYTES is 0.
    """
    PER_BYTE: tl.constexpr = 8 // BITS
    K: tl.constexpr = ROW_BYTES * PER_BYTE
    TURNS: tl.constexpr = (ROW_BYTES + BK - 1) // BK
    PART_TURNS: tl.constexpr = (TURNS + SPLITS - 1) // SPLITS
    IS_RAGGED: tl.constexpr = ROW_BYTES % BK != 0
    # The interpreter multiplies bfloat16 by its bits; there numbers are taken as float32.
    DTYPE: tl.constexpr = x.dtype.element_ty if ASM else tl.float32
    tokens = tl.program_id(0) * BM + tl.arange(0, BM)
    rows = tl.program_id(1) * BN + tl.arange(0, BN)
    part = tl.program_id(2)
    first = part * PART_TURNS
    last = tl.minimum(first + PART_TURNS, TURNS)
    within = tokens < M
    # Rows past the end read the last one again, and are not stored: cheaper than a mask in every turn.
    known_rows = tl.minimum(rows, N - 1).to(tl.int64)
    weight_places = weight + known_rows[:, None] * ROW_BYTES + tl.arange(0, BK)[None, :]
    if BITS == 4:
        x_places = x + tokens.to(tl.int64)[:, None] * K + tl.arange(0, BK * 2)[None, :]
    else:
        x_places = x + tokens.to(tl.int64)[None, :] * K + tl.arange(0, BK)[:, None]
    total = tl.zeros([BN, BM], tl.float32)
    for turn in range(first, last):
        start = turn * BK
        if IS_RAGGED:
            packed = tl.load(weight_places + start, mask=(start + tl.arange(0, BK) < ROW_BYTES)[None, :], other=0)
        else:
            packed = tl.load(weight_places + start, eviction_policy="evict_first")
        if BITS == 4:
            mask = within[:, None]
            if IS_RAGGED:
                mask = mask & (start * 2 + tl.arange(0, BK * 2) < K)[None, :]
            pairs = tl.load(x_places + start * 2, mask=mask, other=0.0).to(DTYPE)
            even, odd = tl.split(tl.reshape(pairs, (BM, BK, 2)))
            high, low = unpack_int4(packed, DTYPE, ASM)
            if GROUP_BYTES:
                sums = tl.dot(low, tl.trans(odd), tl.dot(high, tl.trans(even)))
            else:
                total = tl.dot(high, tl.trans(even), total)
                total = tl.dot(low, tl.trans(odd), total)
        else:
            mask = within[None, :]
            if IS_RAGGED:
                mask = mask & (start + tl.arange(0, BK) < K)[:, None]
            values = tl.load(x_places + start, mask=mask, other=0.0).to(DTYPE)
            if GROUP_BYTES:
                sums = tl.dot(unpack_int8(packed, DTYPE, ASM), values)
            else:
                total = tl.dot(unpack_int8(packed, DTYPE, ASM), values, total)
        if GROUP_BYTES:
            total += sums * tl.load(scale + known_rows * (ROW_BYTES // GROUP_BYTES) + turn).to(tl.float32)[:, None]
    if not GROUP_BYTES:
        total *= tl.load(scale + known_rows).to(tl.float32)[:, None]
    if SPLITS == 1:
        if bias is not None:
            total += tl.load(bias + known_rows).to(tl.float32)[:, None]
        if GELU:
            total = gelu_tanh(total)
    y_places = y + (part * M + tokens).to(tl.int64)[None, :] * N + rows[:, None]
    tl.store(y_places, total.to(y.dtype.element_ty), mask=within[None, :] & (rows < N)[:, None])


@triton.jit(do_not_specialize=["M"])
def sum_kernel(parts, bias, y, M, N: tl.constexpr, SPLITS: tl.constexpr, GELU: tl.constexpr, BLOCK: tl.constexpr):
    """y[token, row] = sum of parts[:, token, row] in their order, + bias, GELU. Grid: (M, blocks of N)."""
    token = tl.program_id(0)
    rows = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    within = rows < N
    total = tl.zeros([BLOCK], tl.float32)
    for part in tl.static_range(SPLITS):
        total += tl.load(parts + (part * M + token).to(tl.int64) * N + rows, mask=within, other=0.0)
    if bias is not None:
        total += tl.load(bias + rows, mask=within, other=0.0).to(tl.float32)
    if GELU:
        total = gelu_tanh(total)
    tl.store(y + token.to(tl.int64) * N + rows, total.to(y.dtype.element_ty), mask=within)
