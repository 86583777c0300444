"""Writing packed weights out without Triton: our PTX launched through cpm_kernels (extra `[cpm]`). Untested on a card.

tools/write_ptx.py compiles `extract_kernel` for half, one scale per row and compute capability 7.5 or later. Without a
working cpm_kernels or a card, `is_available` is False; no error is raised. Shapes: O rows, I columns.
"""

from __future__ import annotations

import ctypes
import functools
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

FOLDER = Path(__file__).parent / "ptx"
LEAST_CAPABILITY = (7, 5)
# The code reads and writes 16 bytes at a time without asking.
ALIGNMENT = 16


def is_available(device: torch.device) -> bool:
    """Whether cpm_kernels is there and the card can take the code."""
    if device.type != "cuda" or torch.version.cuda is None or not torch.cuda.is_available():
        return False
    return torch.cuda.get_device_capability(device) >= LEAST_CAPABILITY and bool(_functions())


def takes(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> bool:
    """Whether `extract` writes this weight out: to half, one half scale per row, rows of a multiple of 16 bytes."""
    if dtype != torch.float16 or scale.dtype != torch.float16 or scale.dim() != 1 or not weight.numel():
        return False
    fits = weight.is_contiguous() and weight.data_ptr() % ALIGNMENT == 0 and weight.shape[1] % ALIGNMENT == 0
    return fits and is_available(weight.device)


def extract(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Packed rows [O, I * bits / 8] with scale [O] to half [O, I]; for what `takes` has taken."""
    function, facts = _functions()[bits]
    num_rows, row_bytes = weight.shape
    scale = scale.contiguous()
    y = torch.empty(num_rows, row_bytes * 8 // bits, dtype=torch.float16, device=weight.device)
    places = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (weight, scale, y)]
    # The compiler adds two pointers to scratch memory, of which these kernels need none.
    arguments = [*places, ctypes.c_int32(row_bytes), ctypes.c_void_p(0), ctypes.c_void_p(0)]
    with torch.cuda.device(weight.device):
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        grid = (num_rows, -(-row_bytes // facts["block_bytes"]), 1)
        function(grid, (facts["threads"], 1, 1), facts["shared"], stream, arguments)
    return y


@functools.cache
def _functions() -> dict[int, tuple[Callable[..., None], dict[str, Any]]]:
    """By bits, what launches the kernel and the facts of its launch; empty where cpm_kernels cannot be used."""
    try:
        from cpm_kernels.kernels.base import KernelFunction, LazyKernelCModule
    except ImportError:
        return {}
    except Exception as error:  # it asks the driver while it is imported
        logger.warning("cpm_kernels cannot be used: %s", error)
        return {}
    facts = json.loads((FOLDER / "facts.json").read_text())
    modules = {bits: LazyKernelCModule((FOLDER / f"extract_int{bits}.ptx").read_bytes()) for bits in (4, 8)}
    return {bits: (KernelFunction(modules[bits], facts["name"]), facts[str(bits)]) for bits in (4, 8)}
