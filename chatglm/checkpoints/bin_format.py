"""`pytorch_model.bin`: a zip archive since 2020, a bare pickle before; never executed (`weights_only=True`)."""

from __future__ import annotations

import re
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from chatglm.checkpoints.pickles import foreign_name, is_pickle
from chatglm.checkpoints.safetensors_format import DTYPES
from chatglm.checkpoints.stored import StoredTensor, total_bytes
from chatglm.errors import DamagedFileError

ZIP_START = b"PK\x03\x04"
# Tensors may share their data (two names of a tied embedding), and an archive may be packed; not more than so.
MOST_SHARED, MOST_PACKED = 4, 50
DTYPES_READ = frozenset(DTYPES.values())


def list_tensors(path: Path) -> dict[str, StoredTensor]:
    """Name -> description of every tensor, without data unless the file must be read whole; raises DamagedFileError."""
    num_bytes, has_offsets = _examine(path)
    tensors = _table(path, map_location="meta" if has_offsets else "cpu")
    offsets = {name: _offset(tensor, path) if has_offsets else None for name, tensor in tensors.items()}
    listed = {name: StoredTensor(tuple(t.shape), t.dtype, path, offsets[name]) for name, t in tensors.items()}
    if total_bytes(listed.values()) > MOST_SHARED * num_bytes:
        raise DamagedFileError(f"{path} promises more numbers than it holds.", "Download this file again.")
    return listed


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors, read by torch: those of an archive are views of the mapped file. Raises DamagedFileError."""
    tensors = _table(path, map_location="cpu", mmap=_examine(path)[1])
    if any(tensor.is_meta for tensor in tensors.values()):
        raise _damaged(path, EOFError())
    return tensors


def read_pickled(path: Path) -> Any:
    """What torch.save wrote, if it consists of tensors, numbers, texts, lists and what torch is told to allow.

    Raises DamagedFileError; nothing else is executed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old pickle protocols: what matters is said by our own errors
            return torch.load(path, weights_only=True, map_location="cpu", mmap=_examine(path)[1])
    except (MemoryError, DamagedFileError):
        raise
    except Exception as error:  # as in `_table`
        raise _damaged(path, error) from None


def _offset(tensor: torch.Tensor, path: Path) -> int | None:
    """Where a contiguous tensor's data lie in the archive: torch notes it when it loads to the meta device."""
    start = getattr(tensor.untyped_storage(), "_checkpoint_offset", None)
    if start is None or not tensor.is_contiguous():
        return None
    start += tensor.storage_offset() * tensor.element_size()
    if start + tensor.nbytes > path.stat().st_size:
        raise _damaged(path, EOFError())
    return int(start)


def _examine(path: Path) -> tuple[int, bool]:
    """Bytes of the file when unpacked, and whether it is an uncompressed archive in native byte order.

    The order is not named before 2023. torch swaps bytes of the other order as it loads, also on the meta device, where
    that ends the process.
    """
    size = path.stat().st_size
    if not _is_zip(path):
        return size, False
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            num_bytes = sum(entry.file_size for entry in entries)
            if num_bytes > MOST_PACKED * size:
                raise DamagedFileError(
                    f"{path} unpacks to {num_bytes:,} bytes, {num_bytes // size} times its size.",
                    "Do not use this file; take it from a source that you trust.",
                )
            names = [entry for entry in entries if entry.filename.endswith("/byteorder") and entry.file_size < 99]
            orders = [archive.read(entry).decode() for entry in names]
    except DamagedFileError:
        raise
    except Exception as error:  # as in `_table`
        raise _damaged(path, error) from None
    is_packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    return max(num_bytes, size), not is_packed and all(order == sys.byteorder for order in orders)


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(4)
    if start != ZIP_START and not is_pickle(path):
        raise DamagedFileError(f"{path} is not a PyTorch file.", "Download this file again.")
    return start == ZIP_START


def _table(path: Path, **options: Any) -> dict[str, torch.Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as above
            content = torch.load(path, weights_only=True, **options)
    except MemoryError:
        raise
    except Exception as error:  # garbage makes the readers of torch fail in a dozen ways; all mean the same to a user
        raise _damaged(path, error) from None
    if not isinstance(content, dict) or not all(map(_is_plain, content.values())):
        raise DamagedFileError(
            f"{path} does not hold a plain table of named tensors.",
            "Give the weights themselves, not a trainer's or an optimizer's state.",
        )
    return {str(name): tensor.detach() for name, tensor in content.items()}


def _is_plain(value: Any) -> bool:
    is_tensor = type(value) in (torch.Tensor, torch.nn.Parameter)
    return is_tensor and value.layout == torch.strided and value.dtype in DTYPES_READ


def _damaged(path: Path, error: Exception) -> DamagedFileError:
    """What is said of a file that torch did not load."""
    refused = re.search(r"GLOBAL ([\w.]+\w)", str(error))
    name = refused.group(1) if refused else foreign_name(path)
    if name:
        return DamagedFileError(
            f"{path} is a pickle that holds something other than tensors (`{name}`); nothing of it was executed.",
            "Do not use this file; take it from a source that you trust.",
        )
    size = f"{path.stat().st_size:,} bytes"
    return DamagedFileError(f"{path} is cut short or damaged ({size}).", "Download this file again.")
