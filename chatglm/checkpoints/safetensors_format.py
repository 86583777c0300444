"""The safetensors format, of which only the header is read.

| n: uint64 LE | n bytes of JSON: {"name": {"dtype": "F16", "shape": [2, 3], "data_offsets": [0, 12]}} | data ... |
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch

from chatglm.checkpoints.stored import StoredTensor
from chatglm.errors import DamagedFileError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
MAX_HEADER_BYTES = 100_000_000  # the format's own limit: a larger number is not a length but damage


def list_tensors(path: Path) -> dict[str, StoredTensor]:
    """Name -> description of every tensor, in the order of their data; raises DamagedFileError."""
    return {name: StoredTensor(shape, dtype, path, start) for name, shape, dtype, start in _entries(path)}


def _entries(path: Path) -> list[tuple[str, tuple[int, ...], torch.dtype, int]]:
    """(name, shape, dtype, first byte in the file) of every tensor, checked against the size of the file."""
    header, data_start = _header(path)
    entries = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            shape, dtype = tuple(int(size) for size in entry["shape"]), DTYPES[entry["dtype"]]
            begin, end = (int(offset) for offset in entry["data_offsets"])
        except (KeyError, TypeError, ValueError):
            raise _senseless(path, f"its entry for {name} cannot be understood") from None
        if begin < 0 or any(size < 0 for size in shape) or end - begin != math.prod(shape) * dtype.itemsize:
            raise _senseless(path, f"its entry for {name} contradicts itself")
        entries.append((name, shape, dtype, data_start + begin))
        if data_start + end > path.stat().st_size:
            raise _truncated(path)
    return sorted(entries, key=lambda entry: entry[3])


def _header(path: Path) -> tuple[dict[str, Any], int]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > MAX_HEADER_BYTES:
            raise _senseless(path, "it does not begin with a header")
        text = file.read(length)
    if len(text) < length:
        raise _truncated(path)
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise _senseless(path, "its header is not JSON")
    return header, 8 + length


def _truncated(path: Path) -> DamagedFileError:
    size = f"{path.stat().st_size:,} bytes"
    return DamagedFileError(f"{path} is cut short: it ends after {size}.", "Download this file again.")


def _senseless(path: Path, reason: str) -> DamagedFileError:
    return DamagedFileError(f"{path} is damaged: {reason}.", "Download this file again.")
