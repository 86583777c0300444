"""Packed weights written out, and packed, on a card: launches and an operator. Needs Triton when it is called."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

EXTRACT_BLOCK = 1024
COMPRESS_BLOCK = 1024


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


def compress(weight: Tensor) -> Tensor:
    """Int8 values [O, I] to bytes [O, I/2]."""
    packed = torch.empty(*weight.shape[:-1], weight.shape[-1] // 2, dtype=torch.int8, device=weight.device)
    if packed.numel():
        launch_compress(weight, packed)
    return packed


def linear_written_out(x: Tensor, weight: Tensor, scale: Tensor, bits: int, bias: Tensor | None, gelu: bool) -> Tensor:
    """x W^T + bias with W written out in x's type for one large product; otherwise as `kernels.linear`."""
    return product_of(x, torch.ops.chatglm.packed_extract(weight, scale, bits, x.dtype), bias, gelu)


def product_of(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    """x W^T + bias with a weight of x's type, and GELU (tanh form) of it if asked for."""
    product = F.linear(x, weight, None if bias is None else bias.to(x.dtype))
    return F.gelu(product, approximate="tanh") if gelu else product


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
