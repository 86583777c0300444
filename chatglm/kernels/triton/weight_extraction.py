"""ChatGLM's quantized checkpoint functions, under upstream's names: by kernels on a card, else in torch.

Results equal those of `kernels.packing` to the last bit. Shapes: O rows, I columns, G groups of a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from chatglm.kernels import packing
from chatglm.kernels.triton import cpm, extraction
from chatglm.kernels.triton.availability import is_available


def int4WeightCompression(weight: Tensor) -> Tensor:
    """Int8 values -8..7 [O, I], I even, to bytes [O, I/2] with the even column in the high nibble."""
    packing.check_bits(4, weight.shape[-1])
    return extraction.compress(weight) if is_available(weight.device) else packing.pack_int4(weight)


def int4WeightExtractionFloat(weight: Tensor, scale: Tensor) -> Tensor:
    """Bytes [O, I/2] with scale [O] or [O, G] to float32 [O, I]."""
    return extract(weight, scale, 4, torch.float32)


def int4WeightExtractionHalf(weight: Tensor, scale: Tensor) -> Tensor:
    """Bytes [O, I/2] with scale [O] or [O, G] to half [O, I]."""
    return extract(weight, scale, 4, torch.float16)


def int4WeightExtractionBFloat16(weight: Tensor, scale: Tensor) -> Tensor:
    """Bytes [O, I/2] with scale [O] or [O, G] to bfloat16 [O, I]."""
    return extract(weight, scale, 4, torch.bfloat16)


def int8WeightExtractionFloat(weight: Tensor, scale: Tensor) -> Tensor:
    """Int8 [O, I] with scale [O] or [O, G] to float32 [O, I]."""
    return extract(weight, scale, 8, torch.float32)


def int8WeightExtractionHalf(weight: Tensor, scale: Tensor) -> Tensor:
    """Int8 [O, I] with scale [O] or [O, G] to half [O, I]."""
    return extract(weight, scale, 8, torch.float16)


def int8WeightExtractionBFloat16(weight: Tensor, scale: Tensor) -> Tensor:
    """Int8 [O, I] with scale [O] or [O, G] to bfloat16 [O, I]."""
    return extract(weight, scale, 8, torch.bfloat16)


def extract(weight: Tensor, scale: Tensor, bits: int, dtype: torch.dtype) -> Tensor:
    """Packed rows [O, I * bits / 8] with scale [O] or [O, G] to `dtype` [O, I]."""
    if is_available(weight.device):
        return torch.ops.chatglm.packed_extract(weight, scale, bits, dtype)
    if cpm.takes(weight, scale, dtype):
        return cpm.extract(weight, scale, bits)
    return packing.dequantize(weight, scale, bits, dtype)


def linear_written_out(x: Tensor, weight: Tensor, scale: Tensor, bits: int, bias: Tensor | None, gelu: bool) -> Tensor:
    """x W^T + bias with W written out in x's type, on any device; otherwise as `kernels.linear`."""
    return extraction.product_of(x, extract(weight, scale, bits, x.dtype), bias, gelu)
