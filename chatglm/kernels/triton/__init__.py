"""Kernels for NVIDIA cards, in Triton. Importing this package imports neither Triton nor a kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from chatglm.kernels.triton import cpm
from chatglm.kernels.triton.availability import is_available
from chatglm.kernels.triton.weight_extraction import linear_written_out

__all__ = ["is_available", "linear", "linear_partials", "takes"]

TYPES = (torch.float16, torch.bfloat16)


def takes(x: Tensor) -> bool:
    """Whether anything here multiplies these activations: half or bfloat16, on a card that has kernels."""
    return x.is_cuda and x.dtype in TYPES and (is_available(x.device) or cpm.is_available(x.device))


def linear(
    x: Tensor, weight: Tensor, scale: Tensor, bits: int, bias: Tensor | None = None, gelu: bool = False
) -> Tensor:
    """x W^T + bias with W packed, and GELU of it, on any device; as `kernels.linear`, which has better for a CPU."""
    if not (x.dtype in TYPES and is_available(x.device)):
        return linear_written_out(x, weight, scale, bits, bias, gelu)
    from chatglm.kernels.triton import triton_matmul

    return triton_matmul.linear(x, weight, scale, bits, bias, gelu)


def linear_partials(x: Tensor, weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    """x W^T as parts for a kernel that sums them, on any device: float32 [S, M, N], scale applied, no bias; S >= 1."""
    values = x.reshape(-1, x.shape[-1])
    if not (x.dtype in TYPES and is_available(x.device)):
        return linear_written_out(values, weight, scale, bits, None, False).float()[None]
    from chatglm.kernels.triton import triton_matmul

    return triton_matmul.linear_partials(values, weight, scale, bits)
