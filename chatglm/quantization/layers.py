"""Layers whose weight is stored as packed integers; state dict keys as published: weight, weight_scale, bias."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from chatglm import kernels
from chatglm.kernels.packing import check_bits, check_group_size, dequantize, quantize_rows


class _PackedWeight(nn.Module):
    """Packed `weight`, int8 [O, I or I/2], and `weight_scale`, half [O] or [O, G]; computes and answers in `dtype`."""

    def __init__(self, num_rows: int, num_columns: int, bits: int, group_size: int = 0) -> None:
        super().__init__()
        check_bits(bits, num_columns)
        check_group_size(group_size, num_columns)
        self.bits, self.group_size = bits, group_size
        self.dtype = torch.get_default_dtype()
        packed = torch.zeros(num_rows, num_columns * bits // 8, dtype=torch.int8)
        self.weight = nn.Parameter(packed, requires_grad=False)
        scale = torch.zeros(num_rows, num_columns // group_size).half() if group_size else torch.zeros(num_rows)
        self.weight_scale = nn.Parameter(scale, requires_grad=False)

    def load_float(self, weight_OI: Tensor) -> None:
        """Quantize a weight [O, I] and hold the result."""
        packed, scale = quantize_rows(weight_OI, self.bits, self.group_size)
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.weight_scale = nn.Parameter(scale, requires_grad=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        scale = self.weight_scale.data
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device=scale.device)).dtype
        super()._apply(fn, recurse)
        # bfloat16 has 8 bits of precision, which would spoil a scale; those of groups are many, so they stay half.
        if (self.weight_scale.dtype == torch.bfloat16 or self.group_size) and not scale.is_meta:
            # In place: a table's embedding and head share their scales, and go on doing so.
            self.weight_scale.data = scale.to(self.weight_scale.device)
        return self


class _PackedProduct(torch.autograd.Function):
    """x W^T with W dequantized in both directions instead of kept; gradients reach x only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor, bits: int) -> Tensor:
        ctx.save_for_backward(weight, scale)
        ctx.bits = bits
        return x @ dequantize(weight, scale, bits, x.dtype).T

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        weight, scale = ctx.saved_tensors
        return grads[0] @ dequantize(weight, scale, ctx.bits, grads[0].dtype), None, None, None


class QuantizedLinear(_PackedWeight):
    """x W^T + b with a packed W; the input's dtype is the result's."""

    def __init__(self, in_features: int, out_features: int, bits: int, bias: bool = True, group_size: int = 0) -> None:
        super().__init__(out_features, in_features, bits, group_size)
        self.in_features, self.out_features = in_features, out_features
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None

    @classmethod
    def of(cls, linear: nn.Linear, bits: int, group_size: int = 0) -> QuantizedLinear:
        """The quantized form of a linear layer; its bias is taken over."""
        quantized = cls(linear.in_features, linear.out_features, bits, False, group_size)
        quantized.load_float(linear.weight.data)
        quantized.bias = linear.bias
        quantized.dtype = linear.weight.dtype
        return quantized

    def forward(self, x: Tensor) -> Tensor:
        bias = self.bias
        if torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
            product = _PackedProduct.apply(x, self.weight, self.weight_scale, self.bits)
            return product if bias is None else product + bias
        return kernels.linear(x, self.weight, self.weight_scale, self.bits, bias)

    def extra_repr(self) -> str:
        group = f", group_size={self.group_size}" if self.group_size else ""
        return f"{self.in_features}, {self.out_features}, bits={self.bits}{group}, bias={self.bias is not None}"


class QuantizedEmbedding(_PackedWeight):
    """Rows of a packed table; only the rows asked for are dequantized."""

    def forward(self, input_ids: Tensor) -> Tensor:
        return dequantize(self.weight[input_ids], self.weight_scale[input_ids], self.bits, self.dtype)
