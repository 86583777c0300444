"""Triton kernels that write packed weights out, and that pack them."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def extract_kernel(packed, scale, y, row_bytes, BITS: tl.constexpr, GROUP_BYTES: tl.constexpr, BLOCK: tl.constexpr):
    """y[row, column] = integer * scale in float32, rounded once. Grid: (rows, blocks of row_bytes).

    packed [rows, row_bytes], scale [rows], or [rows, groups] with GROUP_BYTES > 0, y [rows, row_bytes * 8 / BITS].
    """
    row = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    within = place < row_bytes
    values = tl.load(packed + row * row_bytes + place, mask=within, other=0)
    if GROUP_BYTES:
        factor = tl.load(scale + row * (row_bytes // GROUP_BYTES) + place // GROUP_BYTES, mask=within, other=0.0)
    else:
        factor = tl.load(scale + row)
    factor = factor.to(tl.float32)
    if BITS == 8:
        product = values.to(tl.float32) * factor
        tl.store(y + row * row_bytes + place, product.to(y.dtype.element_ty), mask=within)
    else:
        high = (values >> 4).to(tl.float32) * factor
        low = ((values << 4).to(tl.int8) >> 4).to(tl.float32) * factor
        columns = tl.program_id(1) * (BLOCK * 2) + tl.arange(0, BLOCK * 2)
        both = tl.interleave(high.to(y.dtype.element_ty), low.to(y.dtype.element_ty))
        tl.store(y + row * (row_bytes * 2) + columns, both, mask=columns < row_bytes * 2)


@triton.jit
def compress_kernel(integers, packed, size, BLOCK: tl.constexpr):
    """packed[i] = integers[2i] in the high nibble, integers[2i + 1] in the low one. Grid: blocks of `size` bytes."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    within = place < size
    columns = tl.program_id(0).to(tl.int64) * (BLOCK * 2) + tl.arange(0, BLOCK * 2)
    both = tl.load(integers + columns, mask=columns < size * 2, other=0)
    even, odd = tl.split(tl.reshape(both, (BLOCK, 2)))
    tl.store(packed + place, ((even << 4) | (odd & 15)).to(tl.int8), mask=within)
