"""Products with packed weights and the operations between them: one call each, dispatched by device.

On a CPU `dispatch` selects the kernels; an NVIDIA card with Triton uses those of `triton`; other devices and types use
the reference.
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
    """x W^T + bias with W packed, and GELU of it if asked for; no gradients.

    Args:
        x: activations [..., I] of any float type, on any device.
        weight: int8 [O, I * bits / 8] as `quantization.packing` makes it, on the same device.
        scale: half or float32, [O], or [O, I / group size].
        bits: 4 or 8.
        bias: [O], or None.
        gelu: the result goes through GELU in its tanh form.

    Returns:
        [..., O] in x's type.

    Raises:
        InvalidRequestError: $CHATGLM_KERNEL names no kernel (at the first use).
        OutOfMemoryError: no memory for the activations.
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
    """Rotary, append to a half-precision cache and attention of one position; see `cpu_attention.attend_one`.

    Only the native library has this and the next three: for callers that have seen `backend_name() == "native"`.

    Raises:
        NoLibraryError: there is no native library.
    """
    return cpu_attention.attend_one(_library(), qkv, tables, keys, values, length, rotary_dims)


def attend_prompt(qkv: Tensor, keys: Tensor, values: Tensor, length: int) -> Tensor:
    """Attention of a whole prompt to a half-precision cache; see `cpu_attention.attend_prompt` and `attend_one`."""
    return cpu_attention.attend_prompt(_library(), qkv, keys, values, length)


def rotate_(qkv: Tensor, tables: tuple[Tensor, Tensor], rotary_dims: int) -> Tensor:
    """Rotary of a whole prompt in place; see `cpu_rotary.rotate_` and `attend_one`."""
    return cpu_rotary.rotate_(_library(), qkv, tables, rotary_dims)


def gelu_(x: Tensor) -> Tensor:
    """GELU in place; see `cpu_rotary.gelu_` and `attend_one`."""
    return cpu_rotary.gelu_(_library(), x)


def _library() -> ctypes.CDLL:
    native = dispatch.native_kernels()
    if native is None:
        raise NoLibraryError("This needs the native kernels.")
    return native.library


def backend_name() -> str:
    """What `linear` uses on a CPU: "reference", "torch", "native" or "exact". The first call may compile.

    Raises:
        InvalidRequestError: $CHATGLM_KERNEL names no kernel.
    """
    return dispatch.current().name
