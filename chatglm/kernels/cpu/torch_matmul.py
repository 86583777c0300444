"""Products with packed weights by torch's own operators, in bfloat16, for machines without a C compiler.

Row scales are applied in float32, group scales are rounded to bfloat16. The int4 operator needs its own packing, made
at the first use and kept while the weight lives (twice the memory); a weight that changes is dequantized from then on.
Shapes: M rows of activations, O rows of weights, I columns.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from chatglm.kernels import reference
from chatglm.kernels.packing import GROUP_SIZES, unpack_int4

# From this many rows of activations on, by bits, writing weights out costs less than the operators lose.
MANY_ROWS = {4: 64, 8: 16}
# Rows of weights written out or packed at once; a multiple of the 64 rows that the int4 operator interleaves.
BLOCK_ROWS = 512
# The int4 operator takes rows by the 16; the int8 operator reads past the end of rows that are no multiple of 16.
ROW_MULTIPLE = 16
COLUMN_MULTIPLE = 32
SAMPLE_SIZE = 64


def linear(x: Tensor, weight: Tensor, scale: Tensor, bits: int, bias: Tensor | None) -> Tensor:
    """x W^T + bias, activations in bfloat16; arguments as `chatglm.kernels.linear`."""
    fits = x.shape[-1] * bits == weight.shape[1] * 8
    if not (x.numel() and fits and scale.dtype in (torch.float16, torch.float32)):
        return reference.linear(x, weight, scale, bits, bias)
    values = x.reshape(-1, x.shape[-1])
    product: Tensor | None = None
    if values.shape[0] < MANY_ROWS[bits]:
        product = _few_rows_int4(values, weight, scale) if bits == 4 else _few_rows_int8(values, weight, scale)
    if product is None:
        product = _by_blocks(values, weight, scale, bits)
    if bias is not None:
        product += bias
    return product.view(*x.shape[:-1], -1).to(x.dtype)


def _few_rows_int8(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor | None:
    """By the int8 operator, on the published bytes; float32, or None where it does not serve."""
    if scale.dim() != 1 or weight.shape[1] % COLUMN_MULTIPLE or not weight.is_contiguous():
        return None
    multiply = _operator("_weight_int8pack_mm")
    if multiply is None:
        return None
    ones = torch.ones_like(scale, dtype=torch.bfloat16)
    return multiply(x.to(torch.bfloat16), weight, ones).float().mul_(scale)


def _few_rows_int4(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor | None:
    """By the int4 operator, on its own packing; float32, or None where it does not serve."""
    multiply = _operator("_weight_int4pack_mm_for_cpu")
    form = _packed_form(weight, scale) if multiply is not None else None
    if multiply is None or form is None:
        return None
    product = multiply(x.to(torch.bfloat16), form.packed, form.group_size, form.scales_and_zeros).float()
    return product.mul_(scale) if scale.dim() == 1 else product


def _operator(name: str) -> Callable[..., Tensor] | None:
    return getattr(torch.ops.aten, name, None)


def _by_blocks(x: Tensor, weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    dtype = torch.bfloat16 if _multiplies_bfloat16() else torch.float32
    values = x.to(dtype)
    result = torch.empty((x.shape[0], weight.shape[0]), dtype=torch.float32)
    for first in range(0, weight.shape[0], BLOCK_ROWS):
        rows = slice(first, first + BLOCK_ROWS)
        block = _integers(weight[rows], bits).to(dtype)
        if scale.dim() == 2:
            block = (block.view(*scale[rows].shape, -1) * scale[rows, :, None].to(dtype)).flatten(1)
        part = (values @ block.T).float()
        result[:, rows] = part.mul_(scale[rows]) if scale.dim() == 1 else part
    return result


def _integers(packed: Tensor, bits: int) -> Tensor:
    """The integers of packed rows as bfloat16 [rows, I], exact."""
    if bits == 8:
        return packed.to(torch.bfloat16)
    # 0x4300 is 128 in bfloat16, and its lowest bit counts ones: with a nibble n ^ 8 there it is 136 + (n as -8..7).
    words = packed.to(torch.int32)
    odd = (words & 15).bitwise_left_shift_(16)
    words = words.bitwise_right_shift_(4).bitwise_and_(15).bitwise_or_(odd).bitwise_xor_(0x43084308)
    return words.view(torch.bfloat16).sub_(136)


@functools.cache
def _multiplies_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 matrices faster than float32 ones."""
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):
        return False


# --- the packed form of int4 ---


@dataclass
class _Int4Form:
    """A weight as the int4 operator reads it; `packed` is None if the weight changes or does not fit."""

    owner: weakref.ref[Tensor]
    sample: Tensor
    packed: Tensor | None
    group_size: int
    scales_and_zeros: Tensor


# By id of the weight, because tensors compare element by element; an entry goes when its weight does.
_forms: dict[int, _Int4Form] = {}


def _packed_form(weight: Tensor, scale: Tensor) -> _Int4Form | None:
    """The packed form of a weight, made if it has none; None where the operator does not take it."""
    num_columns = weight.shape[1] * 2
    group_size = _group_size(num_columns, scale)
    if not group_size or weight.shape[0] % ROW_MULTIPLE or not weight.is_contiguous():
        return None
    form = _forms.get(id(weight))
    sample = _sample(weight, scale)
    if form is None or form.owner() is not weight:
        form = _forms[id(weight)] = _make_form(weight, scale, group_size, sample)
        return form
    if form.packed is not None and not torch.equal(form.sample, sample):
        form.packed = None
    return form if form.packed is not None else None


def _sample(weight: Tensor, scale: Tensor) -> Tensor:
    """Some numbers from all over what a form is made of, by which other content is noticed whoever wrote it."""
    parts = [weight.detach().view(-1)] + ([scale.detach().reshape(-1)] if scale.dim() == 2 else [])
    return torch.cat([part[:: max(1, part.numel() // SAMPLE_SIZE)].float() for part in parts])


def _group_size(num_columns: int, scale: Tensor) -> int:
    """The weight's own group size, or the largest that divides a row; 0 if the operator has none for it."""
    if scale.dim() == 2:
        own = num_columns // scale.shape[1]
        return own if own in GROUP_SIZES else 0
    return next((size for size in sorted(GROUP_SIZES, reverse=True) if num_columns % size == 0), 0)


def _make_form(weight: Tensor, scale: Tensor, group_size: int, sample: Tensor) -> _Int4Form:
    key, rows = id(weight), weight.detach().split(BLOCK_ROWS)
    packed = torch.cat([_pack(block) for block in rows])
    groups = scale if scale.dim() == 2 else torch.ones(weight.shape[0], weight.shape[1] * 2 // group_size)
    scales = groups.T.to(torch.bfloat16)
    scales_and_zeros = torch.stack((scales, torch.zeros_like(scales)), dim=-1).contiguous()
    owner = weakref.ref(weight, lambda gone: _forget(key, gone))
    return _Int4Form(owner, sample, packed, group_size, scales_and_zeros)


def _pack(rows: Tensor) -> Tensor:
    """Rows in the operator's packing, which takes int4 values as 0..15."""
    unsigned = (unpack_int4(rows) + 8).to(torch.int32)
    return torch.ops.aten._convert_weight_to_int4pack_for_cpu(unsigned, 1)


def _forget(key: int, gone: weakref.ref[Tensor]) -> None:
    if (form := _forms.get(key)) is not None and form.owner is gone:
        del _forms[key]
