"""Queries and keys rotated, and GELU, in place by the native library. Shapes: T positions, H heads, D head width."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor
from torch.nn import functional as F

BOUND = 2e-6


def gelu_(library: ctypes.CDLL, x: Tensor) -> Tensor:
    """GELU in its tanh form, in place; ValueError unless x is contiguous float32 on the CPU."""
    _check(x)
    library.chatglm_gelu(x.data_ptr(), x.numel(), torch.get_num_threads())
    return x


def rotate_(library: ctypes.CDLL, qkv: Tensor, tables: tuple[Tensor, Tensor], rotary_dims: int) -> Tensor:
    """Rotate queries and keys by their positions, in place; see `nn.rotary`. Raises ValueError for other forms.

    `qkv` is contiguous float32 with T * H * 3D values, per position and head query | key | value; `tables` are cos and
    sin with T * D values, last dimension D. 2 * rotary_dims divides D.
    """
    cos, sin = tables
    width = cos.shape[-1]
    num_tokens = cos.numel() // width
    _check(qkv, cos, sin)
    if cos.shape != sin.shape or width % (2 * rotary_dims) or qkv.numel() % (3 * width * num_tokens):
        raise ValueError("rotate_ takes cos and sin of every position, of the width of a head")
    num_heads = qkv.numel() // (3 * width * num_tokens)
    places = qkv.data_ptr(), cos.data_ptr(), sin.data_ptr()
    library.chatglm_rotate(*places, num_tokens, num_heads, width, rotary_dims, torch.get_num_threads())
    return qkv


def _check(*tensors: Tensor) -> None:
    # The library reads and writes where it is told: what is wrong must be found here.
    if not all(x.dtype is torch.float32 and x.is_contiguous() and x.is_cpu for x in tensors):
        raise ValueError("the native library takes contiguous float32 tensors on the CPU")


def find_fault(library: ctypes.CDLL) -> str:
    """What the library gets wrong, in a few words; "" if nothing. For the self-test before its first use."""
    generator = torch.Generator().manual_seed(0)
    x = torch.linspace(-20, 20, 20_003)
    if not torch.allclose(gelu_(library, x.clone()), F.gelu(x, approximate="tanh"), rtol=0, atol=BOUND):
        return "GELU"
    for num_tokens, num_heads, width, rotary_dims in ((1, 3, 6, 1), (19, 2, 64, 2)):
        qkv = torch.randn(num_tokens, num_heads, 3 * width, generator=generator)
        angle = torch.rand(num_tokens, 1, width, generator=generator)
        query, key, value = qkv.double().chunk(3, dim=-1)
        exact = torch.cat([*(rotated(one, angle.double(), rotary_dims) for one in (query, key)), value], dim=-1)
        result = rotate_(library, qkv, (angle.cos().contiguous(), angle.sin().contiguous()), rotary_dims)
        if not torch.allclose(result.double(), exact, rtol=0, atol=BOUND):
            return f"rotary, {num_tokens} positions"
    return ""


def rotated(x: Tensor, angle: Tensor, rotary_dims: int) -> Tensor:
    """Queries or keys rotated by angles that may differ for every element; for self-tests."""
    first, second = x.unflatten(-1, (rotary_dims, 2, -1)).unbind(-2)
    crossed = torch.stack((-second, first), dim=-2).flatten(-3)
    return x * angle.cos() + crossed * angle.sin()
