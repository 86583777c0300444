"""What files of numerics share: they run in Triton's interpreter, or on a card, in a process of their own.

A file `numerics_*.py` beside this one holds ordinary tests of kernels. `pytest` by itself does not collect it;
test_numerics.py runs these files once in a pytest of their own with $TRITON_INTERPRET, which must be set before triton
is imported (the interpreter) and must not be for compiling (compiling.py), and once more on a card, marked `gpu`.
By hand:

    TRITON_INTERPRET=1 python -m pytest tests/kernels/triton/numerics_matmul.py

In such a file: tensors on DEVICE, results poisoned with `poisoned`, kernels launched as elsewhere. The interpreter
knows no inline assembly and no `gdc_*`: gate them by a constexpr which is `not INTERPRETED`. It needs 0.05 to 0.3 s for
a small case: keep rows and columns at a few hundred, and mark what takes seconds `slow`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from tests import forking

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
FILES = sorted(Path(__file__).parent.glob("numerics_*.py"))


def poisoned(*shape: int, dtype: torch.dtype) -> Tensor:
    """NaN: what a kernel forgets to write shows."""
    return torch.full(shape, torch.nan, dtype=dtype, device=DEVICE)


def run(files: Sequence[Path], *, interpreted: bool, marked: str = "slow or not slow") -> None:
    """Tests of these files in a process of their own; a failure shows what that process wrote."""
    inherited = os.environ.items()
    environment = {name: value for name, value in inherited if name not in ("TRITON_INTERPRET", "PYTEST_ADDOPTS")}
    if interpreted:
        environment["TRITON_INTERPRET"] = "1"
    options = ("-p", "no:cacheprovider", "-x", "-n", "0", "-m", marked)
    command = [sys.executable, "-m", "pytest", *options, *map(str, files)]
    result = forking.run(command, preload=forking.TORCH, env=environment, capture_output=True, text=True, timeout=280)
    assert result.returncode == 0, result.stdout + result.stderr
