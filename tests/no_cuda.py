"""Makes every call of CUDA an error, as on a machine whose driver hangs or whose cards belong to somebody else.

Knows: which functions of torch reach for the driver. Does not know what is tested with it.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch

# Only tells how torch was built, and is asked while torch's own modules are imported.
HARMLESS = "_is_compiled"


def forbid_cuda(put: Callable[[Any, str, Any], None] = setattr) -> None:
    """Let all functions of torch.cuda, and those of torch's library behind it, raise AssertionError.

    Args:
        put: `setattr`, or a test's `monkeypatch.setattr`.
    """
    for name, value in list(vars(torch.cuda).items()):
        if isinstance(value, FunctionType) and value.__module__.startswith("torch.cuda") and name != HARMLESS:
            put(torch.cuda, name, _exploding(name))
    for name in dir(torch._C):
        if name.startswith("_cuda_"):
            put(torch._C, name, _exploding(name))


def _exploding(name: str) -> Callable[..., Any]:
    def explode(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError(f"CUDA was touched: {name}")

    return explode
