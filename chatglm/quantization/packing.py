"""Rounding a weight to integers and packing them, exactly as published int8 and int4 checkpoints are made.

Knows: one scale per row, symmetric, the order of nibbles. Does not know layers.

    int4, one row of a weight [O, I]:   q0  q1  q2  q3  ...            int4 values -7..7, I of them (I even)
    packed, [O, I/2] bytes of int8:     q0|q1   q2|q3                  even column in the HIGH nibble, odd in the low

Shapes: O output rows, I input columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from chatglm.errors import InvalidRequestError

BITS = (4, 8)


def largest(bits: int) -> int:
    """The largest integer: 127 or 7; -128 and -8 are not used."""
    return 2 ** (bits - 1) - 1


def check_bits(bits: int, num_columns: int = 2) -> None:
    """Raise InvalidRequestError for a width other than 4 or 8 bits, or an odd row that int4 cannot pack in pairs."""
    if bits not in BITS:
        raise InvalidRequestError(f"Weights can be quantized to 4 or 8 bits, not {bits!r}.")
    if bits == 4 and num_columns % 2:
        raise InvalidRequestError(f"A weight with {num_columns} columns cannot be packed to int4: the number is odd.")


def quantize_rows(weight_OI: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Packed integers (int8, [O, I] or [O, I/2]) and scales [O] of a weight.

    q = round_half_even(w / scale), scale = max|row| / 127 or / 7. As upstream, a half weight is divided in half
    precision by the scale rounded to half; a float32 weight keeps float32. A bfloat16 weight gets half scales too,
    which have three bits more than its own. A row of zeros has scale 0 (upstream divides 0 by 0).

    Raises:
        InvalidRequestError: bits is not 4 or 8, or int4 and an odd number of columns.
    """
    check_bits(bits, weight_OI.shape[1])
    keeps_float32 = weight_OI.dtype == torch.float32
    weight_OI = weight_OI.float() if weight_OI.dtype == torch.bfloat16 else weight_OI
    scale = weight_OI.abs().amax(dim=1) / largest(bits)
    scale = scale if keeps_float32 else scale.half()
    divisor = torch.where(scale == 0, torch.ones_like(scale), scale)
    integers = torch.round(weight_OI / divisor[:, None]).clamp(-largest(bits), largest(bits)).to(torch.int8)
    return (pack_int4(integers) if bits == 4 else integers), scale


def pack_int4(integers: Tensor) -> Tensor:
    """Int8 values -8..7 [..., I] to bytes [..., I/2]."""
    return (integers[..., 0::2] << 4) | (integers[..., 1::2] & 0x0F)


def unpack_int4(packed: Tensor) -> Tensor:
    """Bytes [..., I/2] to int8 values [..., I]; the inverse of `pack_int4`."""
    # Shifts of int8 are arithmetic: they carry the sign along.
    return torch.stack((packed >> 4, (packed << 4) >> 4), dim=-1).flatten(-2)


def dequantize(packed: Tensor, scale: Tensor, bits: int, dtype: torch.dtype) -> Tensor:
    """Integers times the scale of their row, [..., I] in `dtype`; `scale` has the leading shape of `packed`.

    The product of at most 8 by 11 bits is exact in float32, so it is rounded once, to `dtype`.
    """
    integers = unpack_int4(packed) if bits == 4 else packed
    if scale.dtype == dtype:
        return integers.to(dtype) * scale[..., None]
    return (integers.float() * scale[..., None].float()).to(dtype)
