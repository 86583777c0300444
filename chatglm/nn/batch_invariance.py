"""How many rows a product needs for batch invariance; measured, since it depends on the processor and torch's build.

For few rows (one with AVX-512 BF16, some more with AMX) torch may pick another kernel, which rounds differently.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

ROWS = (1, 2, 3, 4, 5, 8, 9, 16, 17, 32, 33, 64)
CANDIDATES = (1, 2, 4, 8, 16, 32)
# Columns and rows of the weights: a demo model's, and larger ones for which libraries have kernels of their own.
SHAPES = ((64, 192), (512, 256))
LARGE_SHAPE = (2048, 4096)
# Without AMX, whose tiles have 16 rows, a product of many rows costs that many times one of a single row.
MOST_ROWS_WITHOUT_AMX = 4

Product = Callable[[Tensor, Tensor], Tensor]


def rows_for_invariance(dtype: torch.dtype, device: torch.device) -> int | None:
    """The least number of rows from which `F.linear` gives each row the same bits; None if none, or too costly.

    Not measured: other devices, and float32 on a CPU, which differs in its last bits (1e-7) and would become slower.
    """
    if device.type != "cpu" or dtype not in (torch.bfloat16, torch.float16):
        return 1
    return _measured(dtype)


@functools.cache
def _measured(dtype: torch.dtype) -> int | None:
    uses_onednn = {
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported,
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported,
    }[dtype]()
    # torch's own loops are the same for every width, and slow.
    shapes = (*SHAPES, LARGE_SHAPE) if torch.backends.mkldnn.is_available() and uses_onednn else SHAPES
    most = CANDIDATES[-1] if torch.cpu._is_amx_tile_supported() else MOST_ROWS_WITHOUT_AMX
    rows = least_rows(F.linear, dtype, shapes)
    return rows if rows is not None and rows <= most else None


@torch.inference_mode()
def least_rows(product: Product, dtype: torch.dtype, shapes: tuple[tuple[int, int], ...]) -> int | None:
    """The least of CANDIDATES such that `product(x, weight)` gives rows the same bits for all ROWS from there on."""
    unequal = 0
    generator = torch.Generator().manual_seed(0)
    for num_columns, num_outputs in shapes:
        x = torch.randn(ROWS[-1], num_columns, generator=generator).to(dtype)
        weight = torch.randn(64, num_columns, generator=generator).to(dtype).repeat(num_outputs // 64, 1)
        whole = product(x, weight)
        differing = [count for count in ROWS[:-1] if not torch.equal(product(x[:count], weight), whole[:count])]
        unequal = max([unequal, *differing])
    return next((count for count in CANDIDATES if count > unequal), None)
