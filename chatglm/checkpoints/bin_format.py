"""PyTorch's own files (`pytorch_model.bin`): a zip archive since 2020, a bare pickle before.

Knows: how to read both with nothing executed (`weights_only=True`, always), and what a damaged one looks like.
Does not know folders or indexes.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from chatglm.checkpoints.stored import StoredTensor
from chatglm.errors import DamagedFileError

ZIP_START = b"PK\x03\x04"
PICKLE_START = b"\x80"


def list_tensors(path: Path) -> dict[str, StoredTensor]:
    """Name -> description of every tensor. Reads no data, except from a pickle of before 2020, which is read whole.

    Raises:
        DamagedFileError: truncated, not a PyTorch file, or holding something other than named tensors.
    """
    tensors = _load(path, map_location="meta") if _is_zip(path) else _load(path, map_location="cpu")
    return {name: StoredTensor(tuple(tensor.shape), tensor.dtype, path) for name, tensor in tensors.items()}


def iter_tensors(path: Path, is_wanted: Callable[[str], bool]) -> Iterator[tuple[str, torch.Tensor]]:
    """The wanted tensors one by one, as views of the mapped file: copy what you keep, and let go of the rest.

    The pages of the mapping count as this process's memory while it lives, up to the size of the file,
    though the system may take them back at any moment. They are given up with the last tensor.

    Raises:
        DamagedFileError: as `list_tensors`.
    """
    tensors = _load(path, map_location="cpu", mmap=_is_zip(path))
    for name in list(tensors):
        tensor = tensors.pop(name)
        if is_wanted(name):
            yield name, tensor


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(4)
    if start != ZIP_START and not start.startswith(PICKLE_START):
        raise DamagedFileError(f"{path} is not a PyTorch file.", "Download this file again.")
    return start == ZIP_START


def _load(path: Path, **options: Any) -> dict[str, torch.Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old pickle protocols: what matters is said by our own errors
            content = torch.load(path, weights_only=True, **options)
    except MemoryError:
        raise
    except Exception as error:  # garbage makes the readers of torch fail in a dozen ways; all mean the same to a user
        raise _damaged(path, error) from None
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise DamagedFileError(
            f"{path} does not hold a plain table of named tensors.",
            "Give the weights themselves, not a trainer's or an optimizer's state.",
        )
    return {str(name): tensor.detach() for name, tensor in content.items()}


def _damaged(path: Path, error: Exception) -> DamagedFileError:
    refused = re.search(r"GLOBAL ([\w.]+\w)", str(error))
    if refused:
        return DamagedFileError(
            f"{path} holds something other than tensors (`{refused.group(1)}`); nothing of it was executed.",
            "Do not use this file; take it from a source that you trust.",
        )
    size = f"{path.stat().st_size:,} bytes"
    return DamagedFileError(f"{path} is cut short or damaged ({size}).", "Download this file again.")
