"""Products with packed weights on a card: launching the kernels, and operators with fake-tensor forms.

`chatglm::packed_product` and `chatglm::packed_partials` can be traced and captured: shapes follow from shapes alone.
Shapes: M tokens, N rows of the weight, K columns, S parts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from chatglm.kernels.triton.extraction import linear_written_out
from chatglm.kernels.triton.launching import at, ceil_div, has_assembly
from chatglm.kernels.triton.matmul_kernels import product_kernel, sum_kernel
from chatglm.kernels.triton.matmul_tiles import MANY_TOKENS, Tile, num_splits, tile_for

SUM_BLOCK = 512


def linear(x: Tensor, weight: Tensor, scale: Tensor, bits: int, bias: Tensor | None, gelu: bool) -> Tensor:
    """x W^T + bias, and GELU (tanh form) of it if asked for; half or bfloat16; otherwise as `kernels.linear`."""
    values = x.reshape(-1, x.shape[-1])
    if values.shape[0] > MANY_TOKENS:
        return linear_written_out(x, weight, scale, bits, bias, gelu)
    product = torch.ops.chatglm.packed_product(values, weight, scale, bits, bias, gelu)
    return product.view(*x.shape[:-1], weight.shape[0])


def linear_partials(x: Tensor, weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    """x W^T as float32 parts [S, M, N], scale applied, no bias. Above MANY_TOKENS tokens S = 1, rounded to x's type."""
    values = x.reshape(-1, x.shape[-1])
    if values.shape[0] > MANY_TOKENS:
        return linear_written_out(values, weight, scale, bits, None, False).float()[None]
    return torch.ops.chatglm.packed_partials(values, weight, scale, bits)


# --- launching ---


def launch_product(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bits: int,
    bias: Tensor | None,
    gelu: bool,
    y: Tensor,
    tile: Tile,
    splits: int,
) -> None:
    """One launch of the product kernel: y [S, M, N] of any float type; with S > 1 neither bias nor GELU is applied."""
    num_tokens, (num_rows, row_bytes) = x.shape[0], weight.shape
    grid = (ceil_div(num_tokens, tile.tokens), ceil_div(num_rows, tile.rows), splits)
    with at(x):
        product_kernel[grid](
            x.contiguous(),
            weight.contiguous(),
            scale.contiguous(),
            bias,
            y,
            num_tokens,
            N=num_rows,
            ROW_BYTES=row_bytes,
            BITS=bits,
            GROUP_BYTES=row_bytes // scale.shape[1] if scale.dim() == 2 else 0,
            BM=tile.tokens,
            BN=tile.rows,
            BK=tile.num_bytes,
            SPLITS=splits,
            GELU=gelu,
            ASM=has_assembly(),
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
        )


def launch_sum(parts: Tensor, bias: Tensor | None, gelu: bool, y: Tensor) -> None:
    """y [M, N] of any float type = sum of the parts [S, M, N] in their order, + bias, GELU."""
    splits, num_tokens, num_rows = parts.shape
    grid = (num_tokens, ceil_div(num_rows, SUM_BLOCK))
    with at(parts):
        sum_kernel[grid](parts, bias, y, num_tokens, N=num_rows, SPLITS=splits, GELU=gelu, BLOCK=SUM_BLOCK)


def _plan(x: Tensor, weight: Tensor, scale: Tensor, bits: int) -> tuple[Tile, int]:
    num_columns = weight.shape[1] * 8 // bits
    tile = tile_for(x.shape[0], bits, num_columns // scale.shape[1] if scale.dim() == 2 else 0)
    return tile, num_splits(x.shape[0], weight.shape[0], weight.shape[1], tile)


# --- operators ---


def _product(x: Tensor, weight: Tensor, scale: Tensor, bits: int, bias: Tensor | None, gelu: bool) -> Tensor:
    y = _fake_product(x, weight, scale, bits, bias, gelu)
    tile, splits = _plan(x, weight, scale, bits)
    if not y.numel():
        return y
    if splits == 1:
        launch_product(x, weight, scale, bits, bias, gelu, y, tile, 1)
    else:
        launch_sum(_partials(x, weight, scale, bits), bias, gelu, y)
    return y


def _fake_product(x: Tensor, weight: Tensor, scale: Tensor, bits: int, bias: Tensor | None, gelu: bool) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


def _partials(x: Tensor, weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    y = _fake_partials(x, weight, scale, bits)
    tile, splits = _plan(x, weight, scale, bits)
    if y.numel():
        launch_product(x, weight, scale, bits, None, False, y, tile, splits)
    return y


def _fake_partials(x: Tensor, weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    return x.new_empty(_plan(x, weight, scale, bits)[1], x.shape[0], weight.shape[0], dtype=torch.float32)


torch.library.custom_op(
    "chatglm::packed_product",
    _product,
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor scale, int bits, Tensor? bias, bool gelu) -> Tensor",
).register_fake(_fake_product)
torch.library.custom_op(
    "chatglm::packed_partials",
    _partials,
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor scale, int bits) -> Tensor",
).register_fake(_fake_partials)
