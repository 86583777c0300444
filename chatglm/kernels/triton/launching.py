"""What launching a Triton kernel takes beside its arguments."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
from torch import Tensor


def at(tensor: Tensor) -> AbstractContextManager[object]:
    """Launches inside go to the card of this tensor: Triton looks at the current one, not at its arguments."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def has_assembly() -> bool:
    """Whether kernels may use inline assembly: not in the interpreter, which tests run on a CPU."""
    return not triton.knobs.runtime.interpret


def ceil_div(size: int, block: int) -> int:
    """How many blocks hold `size` elements."""
    return -(-size // block)
