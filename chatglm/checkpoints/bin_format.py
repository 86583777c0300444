"""`pytorch_model.bin`: a zip archive since 2020, a bare pickle before; never executed (`weights_only=True`)."""

from __future__ import annotations

import re
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from chatglm.checkpoints.stored import StoredTensor
from chatglm.errors import DamagedFileError

ZIP_START = b"PK\x03\x04"
PICKLE_START = b"\x80"


def list_tensors(path: Path) -> dict[str, StoredTensor]:
    """Name -> description of every tensor, without data unless the file must be read whole; raises DamagedFileError."""
    has_offsets = _has_offsets(path)
    tensors = _load(path, map_location="meta" if has_offsets else "cpu")
    offsets = {name: _offset(tensor, path) if has_offsets else None for name, tensor in tensors.items()}
    return {name: StoredTensor(tuple(t.shape), t.dtype, path, offsets[name]) for name, t in tensors.items()}


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors, read by torch: those of an archive are views of the mapped file. Raises DamagedFileError."""
    return _load(path, map_location="cpu", mmap=_has_offsets(path))


def _offset(tensor: torch.Tensor, path: Path) -> int | None:
    """Where a contiguous tensor's data lie in the archive: torch notes it when it loads to the meta device."""
    start = getattr(tensor.untyped_storage(), "_checkpoint_offset", None)
    if start is None or not tensor.is_contiguous():
        return None
    start += tensor.storage_offset() * tensor.element_size()
    if start + tensor.nbytes > path.stat().st_size:
        raise _damaged(path, EOFError())
    return int(start)


def _has_offsets(path: Path) -> bool:
    """Whether this is an uncompressed archive in native byte order (not named before 2023).

    torch swaps bytes of the other order as it loads, also on the meta device, where that ends the process.
    """
    if not _is_zip(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            orders = [archive.read(entry).decode() for entry in entries if entry.filename.endswith("/byteorder")]
    except Exception as error:  # as in `_load`
        raise _damaged(path, error) from None
    is_packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    return not is_packed and all(order == sys.byteorder for order in orders)


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
