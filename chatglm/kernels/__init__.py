"""Products with packed weights and the operations between them, one call each.

`dispatch` selects the kernels on a CPU, `triton` those of NVIDIA cards; other devices and types use the reference.
"""

from __future__ import annotations

import ctypes

from torch import Tensor
from torch.nn import functional as F

from chatglm.kernels import dispatch, reference
from chatglm.kernels import triton as gpu
from chatglm.kernels.cpu import cpu_attention, cpu_rotary
from chatglm.kernels.cpu.build import NoLibraryError
from chatglm.kernels.dispatch import use
from chatglm.kernels.step import decode_attention, residual_norm, rotate_and_store

__all__ = [
    "attend_one",
    "attend_prompt",
    "backend_name",
    "decode_attention",
    "gelu_",
    "linear",
    "residual_norm",
    "rotate_",
    "rotate_and_store",
    "use",
]


def linear(
    x: Tensor, weight: Tensor, scale: Tensor, bits: int, bias: Tensor | None = None, gelu: bool = False
) -> Tensor:
    """x W^T + bias with W packed, and GELU (tanh form) of it if asked for, [..., O] in x's type; no gradients.

    x is [..., I] of any float type, weight int8 [O, I * bits / 8] as `kernels.packing` makes it, scale half or float32,
    [O] or [O, I / group size], bias [O]; all on one device.
    Raises InvalidRequestError if $CHATGLM_KERNEL names no kernel (at the first use), OutOfMemoryError.
    """
    if x.is_cpu and weight.is_cpu:
        product = dispatch.current().linear(x, weight, scale, bits, bias)
    elif gpu.takes(x):
        return gpu.linear(x, weight, scale, bits, bias, gelu)
    else:
        product = reference.linear(x, weight, scale, bits, bias)
    return F.gelu(product, approximate="tanh") if gelu else product


def attend_one(
    qkv: Tensor, tables: tuple[Tensor, Tensor], keys: Tensor, values: Tensor, length: int, rotary_dims: int
) -> Tensor:
    """See `cpu_attention.attend_one`; this and the next three raise NoLibraryError without the native library."""
    return cpu_attention.attend_one(_library(), qkv, tables, keys, values, length, rotary_dims)


def attend_prompt(qkv: Tensor, keys: Tensor, values: Tensor, length: int) -> Tensor:
    """See `cpu_attention.attend_prompt`."""
    return cpu_attention.attend_prompt(_library(), qkv, keys, values, length)


def rotate_(qkv: Tensor, tables: tuple[Tensor, Tensor], rotary_dims: int) -> Tensor:
    """See `cpu_rotary.rotate_`."""
    return cpu_rotary.rotate_(_library(), qkv, tables, rotary_dims)


def gelu_(x: Tensor) -> Tensor:
    """See `cpu_rotary.gelu_`."""
    return cpu_rotary.gelu_(_library(), x)


def _library() -> ctypes.CDLL:
    native = dispatch.native_kernels()
    if native is None:
        raise NoLibraryError("This needs the native kernels.")
    return native.library


def backend_name() -> str:
    """What `linear` uses on a CPU: "reference", "torch", "native" or "exact". The first call may compile.

    Raises InvalidRequestError if $CHATGLM_KERNEL names no kernel.
    """
    return dispatch.current().name
