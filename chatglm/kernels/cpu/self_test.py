"""A compiled library against the reference, before it is used for the first time in a process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from chatglm.kernels.cpu import cpu_attention, cpu_rotary
from chatglm.kernels.cpu.cpu_matmul import FEW_ROWS, NativeKernels
from chatglm.kernels.packing import dequantize
from chatglm.kernels.reference import rounded_activations

SHAPES = ((1, 5, 2, 0), (2, 33, 130, 0), (3, 7, 192, 32), (13, 34, 128, 64), (40, 70, 384, 128))  # M, O, I, group
BOUND = 2e-5


class Case(NamedTuple):
    """One product: x [M, I], packed weight, scale, bits and bias."""

    x: Tensor
    weight: Tensor
    scale: Tensor
    bits: int
    bias: Tensor


def find_fault(kernels: NativeKernels) -> str:
    """What the library gets wrong, in a few words; "" if nothing."""
    for case in _cases():
        exact = dequantize(case.weight, case.scale, case.bits, torch.float64)
        name = f"{case.bits} bits, {tuple(case.x.shape)} by {tuple(exact.shape)}"
        few = case.x[:FEW_ROWS]
        if not _is_close(kernels.dequantize(case.weight, case.scale, case.bits), exact, exact.abs()):
            return f"dequantize, {name}"
        if not _is_product(kernels.linear_float(few, *case[1:]), few.double(), exact, case.bias):
            return f"float activations, {name}"
        if not _is_product(kernels.linear_int8(*case), rounded_activations(case.x), exact, case.bias):
            return f"int8 activations, {name}"
    return cpu_rotary.find_fault(kernels.library) or cpu_attention.find_fault(kernels.library)


def _cases() -> Iterator[Case]:
    generator = torch.Generator().manual_seed(0)
    for bits in (4, 8):
        for num_tokens, num_rows, num_columns, group_size in SHAPES:
            x = torch.randn(num_tokens, num_columns, generator=generator)
            weight = torch.randint(
                -128, 128, (num_rows, num_columns * bits // 8), generator=generator, dtype=torch.int8
            )
            shape = (num_rows, num_columns // group_size) if group_size else (num_rows,)
            scale = torch.rand(shape, generator=generator) + 0.01
            bias = torch.randn(num_rows, generator=generator)
            yield Case(x, weight, scale.half() if group_size else scale, bits, bias)


def _is_product(result: Tensor, x_MI: Tensor, weight_OI: Tensor, bias: Tensor) -> bool:
    size = x_MI.abs() @ weight_OI.abs().T + bias.abs()
    return _is_close(result, x_MI @ weight_OI.T + bias, size)


def _is_close(result: Tensor, exact: Tensor, size: Tensor) -> bool:
    """Within rounding of float32: an error relative to the sum of the sizes of what was added."""
    return bool(((result.double() - exact).abs() <= BOUND * size + 1e-30).all())
