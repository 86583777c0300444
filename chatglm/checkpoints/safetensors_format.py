"""The safetensors format, of which only the header is read, as strictly as by the library of that name.

| n: uint64 LE | n bytes of JSON: {"name": {"dtype": "F16", "shape": [2, 3], "data_offsets": [0, 12]}} | data ... |
"""

from __future__ import annotations

import json
import reprlib
from pathlib import Path
from typing import Any, NoReturn

import torch

from chatglm.checkpoints.stored import StoredTensor
from chatglm.errors import DamagedFileError, UnsupportedModelError

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
OTHER_DTYPES = [
    "F8_E4M3",
    "F8_E5M2",
    "F8_E8M0",
    "F8_E4M3FNUZ",
    "F8_E5M2FNUZ",
    "F4",
    "F6_E2M3",
    "F6_E3M2",
    "C64",
    "U16",
    "U32",
    "U64",
]
# The format allows 100 MB; a thousand tensors take 100 kB.
MAX_HEADER_BYTES = 8_000_000
METADATA = "__metadata__"


def list_tensors(path: Path) -> dict[str, StoredTensor]:
    """Name -> description of every tensor, in the order of their data; raises DamagedFileError, or
    UnsupportedModelError for a type of numbers that is unknown here.
    """
    header, data_start, end_of_file = _header(path)
    tensors = [_tensor(path, name, entry, data_start) for name, entry in header.items() if name != METADATA]
    tensors.sort(key=lambda named: (named[1].offset, named[1].size_bytes))
    end = data_start
    for name, tensor in tensors:
        if tensor.offset != end:
            raise _senseless(path, f"the data of {name} do not begin where those before end")
        end += tensor.size_bytes
    if end > end_of_file:
        raise _truncated(path)
    if end < end_of_file:
        raise _senseless(path, f"{end_of_file - end:,} bytes follow its data")
    return dict(tensors)


def read_notes(path: Path) -> dict[str, str]:
    """What the writer of the file noted; raises DamagedFileError."""
    return dict(_header(path)[0].get(METADATA) or {})


def _tensor(path: Path, name: str, entry: Any, data_start: int) -> tuple[str, StoredTensor]:
    try:
        shape, dtype, (begin, end) = tuple(entry["shape"]), entry["dtype"], entry["data_offsets"]
    except (KeyError, TypeError, ValueError):
        raise _senseless(path, f"its entry for {name} cannot be understood") from None
    if dtype in OTHER_DTYPES:
        raise UnsupportedModelError(
            f"{path} holds {name} as {dtype} numbers, which are not supported here.",
            "Give a folder with float16, bfloat16 or float32 weights; --quantize packs them.",
        )
    if type(dtype) is not str or dtype not in DTYPES or any(type(size) is not int for size in (*shape, begin, end)):
        raise _senseless(path, f"its entry for {name} cannot be understood")
    stored = StoredTensor(shape, DTYPES[dtype], path, data_start + begin)
    if begin < 0 or any(size < 0 for size in shape) or end - begin != stored.size_bytes:
        raise _senseless(path, f"its entry for {name} contradicts itself")
    return name, stored


def _header(path: Path) -> tuple[dict[str, Any], int, int]:
    """The header, the place of the first byte of data, and that of the end of the file."""
    with path.open("rb") as file:
        length, size = int.from_bytes(file.read(8), "little"), path.stat().st_size
        if length > MAX_HEADER_BYTES:
            raise _senseless(path, "it does not begin with a header")
        if 8 + length > size:
            raise _truncated(path)
        text = file.read(length)
    try:
        header = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_once_each)
    except (ValueError, RecursionError) as error:
        raise _senseless(path, f"its header is not JSON ({reprlib.repr(str(error))})") from None
    notes = header.get(METADATA, {}) if isinstance(header, dict) else None
    if not isinstance(notes, dict) or not all(isinstance(value, str) for value in notes.values()):
        raise _senseless(path, "its header is no table of tensors and notes")
    return header, 8 + length, size


def _refuse_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} in it")


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a name that is there twice")
    return content


def _truncated(path: Path) -> DamagedFileError:
    size = f"{path.stat().st_size:,} bytes"
    return DamagedFileError(f"{path} is cut short: it ends after {size}.", "Download this file again.")


def _senseless(path: Path, reason: str) -> DamagedFileError:
    return DamagedFileError(f"{path} is damaged: {reason}.", "Download this file again.")
