"""Rounding a weight to integers and packing them, exactly as published int8 and int4 checkpoints are made.

    int4, one row of a weight [O, I]:   q0  q1  q2  q3  ...            int4 values -7..7, I of them (I even)
    packed, [O, I/2] bytes of int8:     q0|q1   q2|q3                  even column in the HIGH nibble, odd in the low

Shapes: O output rows, I input columns, G = I / group_size groups of a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from chatglm.errors import InvalidRequestError

BITS = (4, 8)
GROUP_SIZES = (32, 64, 128)


def largest(bits: int) -> int:
    """The largest integer: 127 or 7; -128 and -8 are not used."""
    return 2 ** (bits - 1) - 1


def check_bits(bits: int, num_columns: int = 2) -> None:
    """Raise InvalidRequestError for a width other than 4 or 8 bits, or an odd row that int4 cannot pack in pairs."""
    if bits not in BITS:
        raise InvalidRequestError(f"Weights can be quantized to 4 or 8 bits, not {bits!r}.")
    if bits == 4 and num_columns % 2:
        raise InvalidRequestError(f"A weight with {num_columns} columns cannot be packed to int4: the number is odd.")


def check_group_size(group_size: int, num_columns: int = 0) -> None:
    """Raise InvalidRequestError unless it is 0 (a row has one scale), or 32, 64 or 128 and rows divide into it."""
    if group_size and group_size not in GROUP_SIZES:
        raise InvalidRequestError(f"Groups of columns have 32, 64 or 128 of them, not {group_size!r}.")
    if group_size and num_columns % group_size:
        raise InvalidRequestError(
            f"A weight with {num_columns} columns does not divide into groups of {group_size}.",
            "Give another group size, or none: one scale per row.",
        )


def quantize_rows(weight_OI: Tensor, bits: int, group_size: int = 0) -> tuple[Tensor, Tensor]:
    """Packed integers (int8, [O, I] or [O, I/2]) and scales, [O] or [O, G], of a weight.

    q = round_half_even(w / scale), scale = max|row or group| / 127 or / 7; zeros have scale 0 (upstream: 0 / 0).
    Per row as upstream: half weights divide in half by the scale rounded to half; float32 keeps float32; bfloat16 gets
    half scales, which have three bits more. Per group (in no published file) scales are half, the division float32.
    Raises InvalidRequestError if bits is not 4 or 8, int4 has an odd number of columns, or there are no such groups.
    """
    check_bits(bits, weight_OI.shape[1])
    check_group_size(group_size, weight_OI.shape[1])
    if group_size:
        grouped_OGg = weight_OI.float().unflatten(1, (-1, group_size))
        scale = half_scale(grouped_OGg.abs().amax(dim=2) / largest(bits))
        integers = round_to(grouped_OGg, scale.float()[..., None], bits).flatten(1)
    else:
        keeps_float32 = weight_OI.dtype == torch.float32
        weight_OI = weight_OI.float() if weight_OI.dtype == torch.bfloat16 else weight_OI
        scale = weight_OI.abs().amax(dim=1) / largest(bits)
        scale = scale if keeps_float32 else scale.half()
        integers = round_to(weight_OI, scale[:, None], bits)
    return pack(integers, bits), scale


def half_scale(scale: Tensor) -> Tensor:
    """Float32 scales in half; below 6e-5 rounded up: a scale that is too small could not reach the largest weight."""
    half = scale.half()
    up = torch.nextafter(half, torch.full_like(half, torch.inf))
    return torch.where(half.float() * 1.002 < scale, up, half)


def round_to(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Integers (int8) of a weight; `scale` broadcasts to it and is not negative."""
    divisor = torch.where(scale == 0, torch.ones_like(scale), scale)
    return torch.round(weight / divisor).clamp(-largest(bits), largest(bits)).to(torch.int8)


def pack(integers: Tensor, bits: int) -> Tensor:
    """Integers [..., I] as a checkpoint stores them: [..., I], or in pairs [..., I/2]."""
    return pack_int4(integers) if bits == 4 else integers


def pack_int4(integers: Tensor) -> Tensor:
    """Int8 values -8..7 [..., I] to bytes [..., I/2]."""
    return (integers[..., 0::2] << 4) | (integers[..., 1::2] & 0x0F)


def unpack_int4(packed: Tensor) -> Tensor:
    """Bytes [..., I/2] to int8 values [..., I]; the inverse of `pack_int4`."""
    # Shifts of int8 are arithmetic: they carry the sign along.
    return torch.stack((packed >> 4, (packed << 4) >> 4), dim=-1).flatten(-2)


def dequantize(packed: Tensor, scale: Tensor, bits: int, dtype: torch.dtype) -> Tensor:
    """Integers [..., I] or [..., I/2] times the scale of their row or group, [..., I], rounded once, to `dtype`.

    The product of at most 8 by 11 bits is exact in float32. A scale per group has as many dimensions as `packed`.
    """
    integers = unpack_int4(packed) if bits == 4 else packed
    if scale.dim() == packed.dim():
        return _multiplied(integers.unflatten(-1, (scale.shape[-1], -1)), scale, dtype).flatten(-2)
    return _multiplied(integers, scale, dtype)


def _multiplied(integers: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    if scale.dtype == dtype:
        return integers.to(dtype) * scale[..., None]
    return (integers.float() * scale[..., None].float()).to(dtype)
