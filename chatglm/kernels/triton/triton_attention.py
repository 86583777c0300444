"""Attention of one new position of each row over its pages, in Triton; memory-bound, each key and value is read once.

    positions of a row        |<---- 128 ---->|<---- 128 ---->|<-- 44 -->|        length 300
    `mix_sections`            per section and head: maximum m, total t, mixed values v
    `merge_sections`          result = sum of e^(m - largest m) v / sum of e^(m - largest m) t

Batch invariance: a section has 128 positions whatever the batch, programs only share sections, merging goes through
them in groups of 16, and the table's width is not specialised. Sections behind a row's length are skipped.
Shapes: B rows, H heads, D head width, N pages, P positions of a page, M pages of a table, S sections of a table.
"""

# The functions that Triton compiles have no types.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from chatglm.kernels.triton.launching import at

SECTION = 128
# Sections that are merged at once: 2048 positions, ChatGLM-6B's whole context.
GROUP = 16
# Enough for the largest cards to stay full while blocks come and go; more rows than that, and each has one program.
PROGRAMS = 2048
MAX_WIDTH = 256
# Of a section's keys, one warp holds so many bytes: 32 registers of each thread, and the same of values.
BYTES_PER_WARP = 4096


@triton.jit(do_not_specialize=["table_width", "num_sections"])
def mix_sections(
    query,
    keys,
    values,
    table,
    lengths,
    mixed,
    stats,
    scale,
    num_heads,
    table_width,
    num_sections,
    WIDTH: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    PAGE: tl.constexpr,
    SECTION: tl.constexpr,
):
    """Grid: heads, rows, programs that share a row's sections."""
    head = tl.program_id(0)
    row = tl.program_id(1)
    length = tl.minimum(tl.load(lengths + row), table_width * PAGE)
    column = tl.arange(0, BLOCK_WIDTH)
    is_column = column < WIDTH
    row_head = row * num_heads + head
    for section in range(tl.program_id(2), tl.cdiv(length, SECTION), tl.num_programs(2)):
        position = section * SECTION + tl.arange(0, SECTION)
        # Positions behind the end read the last one again, and weigh nothing: loads without conditions go out together.
        read = tl.minimum(position, length - 1)
        page = tl.load(table + row * table_width + read // PAGE).to(tl.int64)
        place = (page * num_heads + head) * PAGE + read % PAGE
        where = place[:, None] * WIDTH + column[None, :]
        if WIDTH == BLOCK_WIDTH:
            k = tl.load(keys + where)
            v = tl.load(values + where)
        else:
            k = tl.load(keys + where, mask=is_column[None, :], other=0.0)
            v = tl.load(values + where, mask=is_column[None, :], other=0.0)
        # Nothing is used before all of it is on its way: ptxas would rather wait for each in turn, to save registers.
        # It moves no load over a barrier, and there is nothing to compute without the query.
        tl.debug_barrier()
        q = tl.load(query + row_head * WIDTH + column, mask=is_column, other=0.0).to(tl.float32) * scale
        scores = tl.where(position < length, tl.sum(k.to(tl.float32) * q[None, :], axis=1), -float("inf"))
        maximum = tl.max(scores, axis=0)
        weights = tl.exp2(scores - maximum)
        total = tl.sum(weights, axis=0)
        mix = tl.sum(weights[:, None] * v.to(tl.float32), axis=0)
        target = row_head.to(tl.int64) * num_sections + section
        tl.store(mixed + target * WIDTH + column, mix, mask=is_column)
        tl.store(stats + target * 2, maximum)
        tl.store(stats + target * 2 + 1, total)


@triton.jit(do_not_specialize=["table_width", "num_sections"])
def merge_sections(
    mixed,
    stats,
    lengths,
    result,
    num_heads,
    table_width,
    num_sections,
    WIDTH: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    PAGE: tl.constexpr,
    SECTION: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Grid: heads, rows."""
    row = tl.program_id(1)
    row_head = row * num_heads + tl.program_id(0)
    length = tl.minimum(tl.load(lengths + row), table_width * PAGE)
    num_used = tl.cdiv(length, SECTION)
    column = tl.arange(0, BLOCK_WIDTH)
    is_column = column < WIDTH
    largest = -float("inf")
    total = 0.0
    mix = tl.zeros([BLOCK_WIDTH], tl.float32)
    for first in range(0, num_used, GROUP):
        section = first + tl.arange(0, GROUP)
        is_used = section < num_used
        source = row_head.to(tl.int64) * num_sections + section
        totals = tl.load(stats + source * 2 + 1, mask=is_used, other=0.0)
        is_read = is_used[:, None] & is_column[None, :]
        parts = tl.load(mixed + source[:, None] * WIDTH + column[None, :], mask=is_read, other=0.0)
        tl.debug_barrier()  # as above
        maxima = tl.load(stats + source * 2, mask=is_used, other=-float("inf"))
        before = largest
        largest = tl.maximum(before, tl.max(maxima, axis=0))
        shares = tl.exp2(maxima - largest)
        kept = tl.exp2(before - largest)
        total = total * kept + tl.sum(shares * totals, axis=0)
        mix = mix * kept + tl.sum(shares[:, None] * parts, axis=0)
    tl.store(result + row_head * WIDTH + column, (mix / total).to(result.dtype.element_ty), mask=is_column)


def new_partials(query_BHD: Tensor, page_size: int, table_width: int) -> tuple[Tensor, Tensor]:
    """Room for the mixed values [B, H, S, D] of each section and its maximum and total [B, H, S, 2]; float32."""
    num_rows, num_heads, width = query_BHD.shape
    num_sections = triton.cdiv(table_width * page_size, SECTION)
    mixed = query_BHD.new_empty((num_rows, num_heads, num_sections, width), dtype=torch.float32)
    return mixed, query_BHD.new_empty((num_rows, num_heads, num_sections, 2), dtype=torch.float32)


def launch(
    query_BHD: Tensor,
    keys: Tensor,
    values: Tensor,
    table_BM: Tensor,
    lengths_B: Tensor,
    result_BHD: Tensor,
    partials: tuple[Tensor, Tensor],
) -> None:
    """Fill `result_BHD`; arguments as `chatglm.kernels.decode_attention`, all contiguous."""
    mixed, stats = partials
    num_rows, num_heads, width = query_BHD.shape
    page_size, table_width, num_sections = keys.shape[2], table_BM.shape[1], mixed.shape[2]
    block_width = triton.next_power_of_2(width)
    sizes = {"WIDTH": width, "BLOCK_WIDTH": block_width, "PAGE": page_size, "SECTION": SECTION}
    # e^x is computed as 2^(x / ln 2); the division is done once, in the queries.
    scale = width**-0.5 / math.log(2)
    num_sharing = min(num_sections, triton.cdiv(PROGRAMS, num_rows * num_heads))
    mix_sections[num_heads, num_rows, num_sharing](
        query_BHD, keys, values, table_BM, lengths_B, mixed, stats, scale, num_heads, table_width, num_sections,
        **sizes, num_warps=num_warps(block_width, keys.element_size()),
    )  # fmt: skip
    merge_sections[num_heads, num_rows](
        mixed, stats, lengths_B, result_BHD, num_heads, table_width, num_sections, **sizes, GROUP=GROUP, num_warps=4
    )


def num_warps(block_width: int, element_size: int) -> int:
    """Warps of a program of `mix_sections`."""
    return max(1, min(16, SECTION * block_width * element_size // BYTES_PER_WARP))


@torch.library.custom_op("chatglm::decode_attention", mutates_args=(), device_types="cuda")
def operator(query_BHD: Tensor, keys: Tensor, values: Tensor, table_BM: Tensor, lengths_B: Tensor) -> Tensor:
    """`launch` as an operator of torch: it runs on fake tensors and in graphs, on the device of its tensors."""
    query_BHD = query_BHD.contiguous()
    result_BHD = torch.empty_like(query_BHD)
    with at(query_BHD):
        partials = new_partials(query_BHD, keys.shape[2], table_BM.shape[1])
        launch(query_BHD, keys, values, table_BM, lengths_B, result_BHD, partials)
    return result_BHD


@operator.register_fake
def _(query_BHD: Tensor, *_others: object) -> Tensor:
    return query_BHD.new_empty(query_BHD.shape)
