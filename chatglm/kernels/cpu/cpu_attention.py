"""Attention to a half-precision cache by the native library, of one new position or of a whole prompt.

Shapes: T positions of the call, H heads, D head width, N positions there is room for.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor
from torch.nn import functional as F

from chatglm.errors import OutOfMemoryError
from chatglm.kernels.cpu.cpu_rotary import rotated

CPU = torch.device("cpu")
MAX_WIDTH = 512
BOUND = 2e-5
PROMPT = 14  # queries
# H, D, positions stored, rotary_dims of a head.
CASES = ((1, 2, 0, 1), (3, 30, 5, 1), (2, 64, 67, 2), (5, 20, 1030, 2))


def attend_one(
    library: ctypes.CDLL,
    qkv: Tensor,
    tables: tuple[Tensor, Tensor],
    keys: Tensor,
    values: Tensor,
    length: int,
    rotary_dims: int,
) -> Tensor:
    """Softmax(q k / sqrt(D)) v of one new position over all positions stored and itself, float32 [1, 1, H D].

    qkv is float32 with H * 3D values, per head query | key | value, not rotated; tables are its cos and sin, float32
    [D] each. keys and values are half [1, H, N, D], contiguous; the new position is written at `length` < N. A head is
    rotated in `rotary_dims` parts (1 or 2), see `nn.rotary`; 2 * rotary_dims divides D.
    Raises ValueError for tensors of other forms, OutOfMemoryError without memory for the threads' buffers.
    """
    cos, sin = tables
    _, num_heads, capacity, width = keys.shape
    # The library reads and writes where it is told: what is wrong must be found here.
    is_right = (
        _is_storage(keys, values)
        and 0 <= length < capacity
        and width % (2 * rotary_dims) == 0
        and qkv.numel() == 3 * num_heads * width
        and cos.numel() == width
        and sin.numel() == width
        and all(_is_plain(x) for x in (qkv, cos, sin))
    )
    if not is_right:
        raise ValueError("attend_one takes contiguous float32 queries and half storage on the CPU, of equal widths")
    result = torch.empty((1, 1, num_heads * width), dtype=torch.float32, device=CPU)
    status = library.chatglm_attend_one(
        result.data_ptr(),
        qkv.data_ptr(),
        cos.data_ptr(),
        sin.data_ptr(),
        keys.data_ptr(),
        values.data_ptr(),
        num_heads,
        width,
        capacity,
        length,
        rotary_dims,
        torch.get_num_threads(),
    )
    _check(status)
    return result


def attend_prompt(library: ctypes.CDLL, qkv: Tensor, keys: Tensor, values: Tensor, length: int) -> Tensor:
    """Softmax(q k / sqrt(D)) v of every query over all positions stored, float32 [1, T, H D]; raises as `attend_one`.

    qkv is float32 [1, T, H * 3D], per head query | key | value; only the rotated queries are read. keys and values are
    half [1, H, N, D], contiguous, with `length` positions stored, 0 < length <= N; D <= 512.
    """
    _, num_heads, capacity, width = keys.shape
    is_right = (
        _is_storage(keys, values)
        and 0 < length <= capacity
        and width <= MAX_WIDTH
        and qkv.dim() == 3
        and (qkv.shape[0], qkv.shape[2]) == (1, 3 * num_heads * width)
        and _is_plain(qkv)
    )
    if not is_right:
        raise ValueError("attend_prompt takes contiguous float32 queries and half storage on the CPU, of equal widths")
    num_tokens = qkv.shape[1]
    result = torch.empty((1, num_tokens, num_heads * width), dtype=torch.float32, device=CPU)
    places = (x.data_ptr() for x in (result, qkv, keys, values))
    sizes = num_tokens, num_heads, width, capacity, length
    _check(library.chatglm_attend_prompt(*places, *sizes, torch.get_num_threads()))
    return result


def _is_storage(keys: Tensor, values: Tensor) -> bool:
    is_half = keys.dtype is torch.float16 and values.dtype is torch.float16
    is_contiguous = keys.is_contiguous() and values.is_contiguous()
    return is_half and is_contiguous and keys.shape == values.shape and keys.shape[0] == 1 and keys.is_cpu


def _is_plain(x: Tensor) -> bool:
    return x.dtype is torch.float32 and x.is_contiguous() and x.is_cpu


def _check(status: int) -> None:
    if status:
        raise OutOfMemoryError("Memory ran out in attention.", "Give a smaller --max-length.")


def find_fault(library: ctypes.CDLL) -> str:
    """What the library gets wrong, in a few words; "" if nothing. For the self-test before its first use."""
    generator = torch.Generator().manual_seed(0)
    for num_heads, width, length, rotary_dims in CASES:
        qkv = torch.randn(num_heads, 3 * width, generator=generator)
        angle = torch.rand(width, generator=generator)
        keys, values = torch.randn(2, 1, num_heads, length + 3, width, generator=generator).half()
        result = attend_one(library, qkv, (angle.cos(), angle.sin()), keys, values, length, rotary_dims)
        query, key, value = (x[None, :, None] for x in qkv.double().chunk(3, dim=-1))
        query, key = rotated(query, angle.double(), rotary_dims), rotated(key, angle.double(), rotary_dims)
        seen = slice(0, length + 1)
        exact = F.scaled_dot_product_attention(query, keys[:, :, seen].double(), values[:, :, seen].double())
        name = f"attention, {num_heads} heads of {width}, {length} positions"
        if not torch.equal(values[:, :, length], value[:, :, 0].half()):
            return f"{name}: value stored"
        if not torch.allclose(keys[:, :, length].double(), key[:, :, 0], rtol=1e-3, atol=1e-4):
            return f"{name}: key stored"
        if not torch.allclose(result.view(num_heads, width).double(), exact[0, :, 0], rtol=0, atol=BOUND):
            return name
        prompt = torch.randn(1, PROMPT, num_heads, 3 * width, generator=generator)
        result = attend_prompt(library, prompt.flatten(2), keys, values, length + 1).unflatten(2, (num_heads, width))
        query = prompt[..., :width].transpose(1, 2).double()
        exact = F.scaled_dot_product_attention(query, keys[:, :, seen].double(), values[:, :, seen].double())
        if not torch.allclose(result.double(), exact.transpose(1, 2), rtol=0, atol=BOUND):
            return f"{name}, of a prompt"
    return ""
