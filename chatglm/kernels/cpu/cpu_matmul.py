"""Tensors in and out of the native library. Shapes: M rows of activations, O rows of weights, I columns."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import torch
from torch import Tensor

from chatglm.errors import OutOfMemoryError
from chatglm.kernels import reference
from chatglm.kernels.cpu.library import WEIGHT
from chatglm.kernels.packing import GROUP_SIZES

# With more rows of activations than this, writing weights out as float32 for torch's own product is quicker than
# widening them again for every few rows.
FEW_ROWS = 32
# Bytes of weights written out at once: they stay in the processor's cache until they are multiplied.
BLOCK_BYTES = 8 * 2**20
CPU = torch.device("cpu")


class NativeKernels:
    """The products of the native library, on CPU tensors; what it does not take goes to the reference."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        self._linear_int8 = library.chatglm_linear_int8
        self._linear_float = library.chatglm_linear_float
        self._dequantize = library.chatglm_dequantize

    def linear_int8(self, x: Tensor, weight: Tensor, scale: Tensor, bits: int, bias: Tensor | None) -> Tensor:
        """x rounded to int8 in groups of 64 columns (`reference.rounded_activations`), then multiplied exactly."""
        return self._linear(self._linear_int8, x, weight, scale, bits, bias)

    def linear_float(self, x: Tensor, weight: Tensor, scale: Tensor, bits: int, bias: Tensor | None) -> Tensor:
        """x as it is; float32 throughout."""
        if x.numel() <= FEW_ROWS * x.shape[-1]:
            return self._linear(self._linear_float, x, weight, scale, bits, bias)
        num_columns = x.shape[-1]
        if not _takes(weight, scale, bits, num_columns) or not weight.shape[0]:
            return reference.linear(x, weight, scale, bits, bias)
        return self._linear_by_blocks(x, weight, scale, bits, bias)

    def dequantize(self, weight: Tensor, scale: Tensor, bits: int) -> Tensor:
        """The weight as float32 [O, I]; weight and scale as the library takes them."""
        result = torch.empty((weight.shape[0], weight.shape[1] * 8 // bits), dtype=torch.float32, device=CPU)
        packed = pack_weight(weight, scale, bits, None)
        _check(self._dequantize(result.data_ptr(), packed, torch.get_num_threads()))
        return result

    def _linear(
        self,
        function: Callable[..., int],
        x: Tensor,
        weight: Tensor,
        scale: Tensor,
        bits: int,
        bias: Tensor | None,
    ) -> Tensor:
        # About five microseconds that a decoded token pays 113 times: no helper calls where one would be nicer.
        *leading, num_columns = x.shape
        num_values, num_rows = x.numel(), weight.shape[0]
        if not (num_values and num_rows and _takes(weight, scale, bits, num_columns)):
            return reference.linear(x, weight, scale, bits, bias)
        values = x if x.dtype is torch.float32 and x.is_contiguous() else x.to(torch.float32).contiguous()
        if bias is not None and (bias.dtype is not torch.float32 or not bias.is_contiguous()):
            bias = bias.to(torch.float32).contiguous()
        result = torch.empty((*leading, num_rows), dtype=torch.float32, device=CPU)
        packed = pack_weight(weight, scale, bits, bias)
        threads = torch.get_num_threads()
        _check(function(result.data_ptr(), values.data_ptr(), num_values // num_columns, packed, threads))
        return result if x.dtype is torch.float32 else result.to(x.dtype)

    def _linear_by_blocks(self, x: Tensor, weight: Tensor, scale: Tensor, bits: int, bias: Tensor | None) -> Tensor:
        num_rows, num_columns = weight.shape[0], x.shape[-1]
        values = x.reshape(-1, num_columns).to(torch.float32)
        result = torch.empty((values.shape[0], num_rows), dtype=torch.float32, device=CPU)
        step = max(1, BLOCK_BYTES // (4 * num_columns))
        for first in range(0, num_rows, step):
            rows = slice(first, min(first + step, num_rows))
            result[:, rows] = values @ self.dequantize(weight[rows], scale[rows], bits).T
        if bias is not None:
            result += bias
        return result.view(*x.shape[:-1], num_rows).to(x.dtype)


def pack_weight(weight: Tensor, scale: Tensor, bits: int, bias: Tensor | None) -> bytes:
    """The C struct Weight for these tensors, which must outlive its use."""
    num_rows, num_bytes = weight.shape
    num_columns = num_bytes * 8 // bits
    return WEIGHT.pack(
        weight.data_ptr(),
        scale.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        num_rows,
        num_columns,
        bits,
        0 if scale.dim() == 1 else num_columns // scale.shape[1],
        scale.dtype is torch.float16,
    )


def _takes(weight: Tensor, scale: Tensor, bits: int, num_columns: int) -> bool:
    """Whether weight and scale lie in memory as the library reads them, for activations of so many columns."""
    num_rows, num_bytes = weight.shape
    return (
        weight.dtype is torch.int8
        and num_columns * bits == num_bytes * 8
        and weight.is_contiguous()
        and scale.is_contiguous()
        and (scale.dtype is torch.float32 or scale.dtype is torch.float16)
        and (scale.dim() == 1 or num_columns in [size * scale.shape[1] for size in GROUP_SIZES])
        and scale.shape[0] == num_rows
    )


def _check(status: int) -> None:
    if status:
        raise OutOfMemoryError("Memory ran out in a product with quantized weights.", "Give a smaller --max-length.")
