"""Packed weights written out, and packed: on a card by our kernels, elsewhere by the formulas they are held to.

Knows: the functions that ChatGLM's quantized checkpoints came with, under the names they are known by. Those names
(`int4WeightCompression` and the family of `WeightExtraction`) are the field's, not this project's style. Does not know
how a product is computed without writing the weight out.

All results are those of chatglm.kernels.packing to the last bit: integer times scale, rounded once.
Shapes: O rows, I columns, G groups of a row.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from chatglm.kernels import packing
from chatglm.kernels.triton import cpm
from chatglm.kernels.triton.available import is_available

EXTRACT_BLOCK = 1024
COMPRESS_BLOCK = 1024


def int4WeightCompression(weight: Tensor) -> Tensor:
    """Int8 values -8..7 [O, I], I even, to bytes [O, I/2] with the even column in the high nibble."""
    packing.check_bits(4, weight.shape[-1])
    return _compress(weight) if is_available(weight.device) else packing.pack_int4(weight)


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
    """x W^T + bias with W written out in x's type for one large product; otherwise as `kernels.linear`."""
    product = F.linear(x, extract(weight, scale, bits, x.dtype), None if bias is None else bias.to(x.dtype))
    return F.gelu(product, approximate="tanh") if gelu else product


# --- launching; these import Triton, so that the file can be without it ---


def launch_extract(weight: Tensor, scale: Tensor, bits: int, y: Tensor) -> None:
    """One launch: y [O, I] of any float type."""
    from chatglm.kernels.triton.extraction_kernels import extract_kernel
    from chatglm.kernels.triton.launching import at, ceil_div

    num_rows, row_bytes = weight.shape
    group_bytes = row_bytes // scale.shape[1] if scale.dim() == 2 else 0
    with at(weight):
        extract_kernel[(num_rows, ceil_div(row_bytes, EXTRACT_BLOCK))](
            weight.contiguous(), scale.contiguous(), y, row_bytes, bits, group_bytes, EXTRACT_BLOCK
        )


def launch_compress(weight: Tensor, packed: Tensor) -> None:
    """One launch: packed [O, I/2] from int8 values [O, I]."""
    from chatglm.kernels.triton.extraction_kernels import compress_kernel
    from chatglm.kernels.triton.launching import at, ceil_div

    size = packed.numel()
    with at(weight):
        compress_kernel[(ceil_div(size, COMPRESS_BLOCK),)](weight.contiguous(), packed, size, COMPRESS_BLOCK)


def _compress(weight: Tensor) -> Tensor:
    packed = torch.empty(*weight.shape[:-1], weight.shape[-1] // 2, dtype=torch.int8, device=weight.device)
    if packed.numel():
        launch_compress(weight, packed)
    return packed


def _extract(weight: Tensor, scale: Tensor, bits: int, dtype: torch.dtype) -> Tensor:
    y = _fake_extract(weight, scale, bits, dtype)
    if y.numel():
        launch_extract(weight, scale, bits, y)
    return y


def _fake_extract(weight: Tensor, scale: Tensor, bits: int, dtype: torch.dtype) -> Tensor:
    return weight.new_empty(weight.shape[0], weight.shape[1] * 8 // bits, dtype=dtype)


torch.library.custom_op(
    "chatglm::packed_extract",
    _extract,
    mutates_args=(),
    schema="(Tensor weight, Tensor scale, int bits, ScalarType dtype) -> Tensor",
).register_fake(_fake_extract)
