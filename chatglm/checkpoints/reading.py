"""The values of stored tensors: read whole or by blocks of rows, or as views of the mapped file if asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from chatglm.checkpoints import bin_format
from chatglm.checkpoints.files import WeightFiles, check_usable, find_weight_files, list_file
from chatglm.checkpoints.huge_pages import convert_into, new_tensor
from chatglm.checkpoints.raw_file import RawFile
from chatglm.checkpoints.stored import StoredTensor
from chatglm.errors import DamagedFileError

BLOCK_BYTES = 16 * 2**20
CONVERTED_BYTES = 4 * 2**20  # what is converted while it is read: small enough to stay in the cache of a processor


class WeightReader:
    """Reads a folder's tensors by name, for one thread at a time; a context manager. `is_mapped` files allow `view`.

    Raises MissingFileError, PointerFileError or DamagedFileError if a file cannot be used or is not as it was listed.
    """

    def __init__(self, stored: Mapping[str, StoredTensor], *, is_mapped: bool = False) -> None:
        self._stored, self._is_mapped = stored, is_mapped
        self._files: dict[Path, RawFile] = {}
        self._loaded: dict[Path, dict[str, torch.Tensor]] = {}
        self._buffer = new_tensor((CONVERTED_BYTES,), torch.uint8)  # takes memory when it is first used

    def read(self, name: str) -> torch.Tensor:
        stored = self._stored[name]
        tensor = new_tensor(stored.shape, stored.dtype)
        self.copy_to(name, tensor)
        return tensor

    def copy_to(self, name: str, out: torch.Tensor) -> None:
        """Fill a contiguous tensor of the same shape, of any type and on any device."""
        stored = self._stored[name]
        if stored.offset is None:
            convert_into(out, self._load(stored.path)[name])
            return
        file = self._file(stored.path)
        if out.dtype == stored.dtype and out.is_cpu:
            file.read_into(out, stored.offset)
            return
        buffer, values = self._buffer.view(stored.dtype), out.view(-1)
        for start in range(0, len(values), len(buffer)):
            part = buffer[: len(values) - start]
            file.read_into(part, stored.offset + start * stored.dtype.itemsize)
            convert_into(values[start : start + len(part)], part)

    def blocks(self, name: str, block_bytes: int = BLOCK_BYTES, *, rows: range | None = None) -> Iterator[torch.Tensor]:
        """The rows (only `rows`) in order, at most `block_bytes` at a time but at least one; a scalar has one row.

        Each block is valid until the next is asked for.
        """
        stored = self._stored[name]
        shape = stored.shape or (1,)
        rows_at_once = max(1, block_bytes * shape[0] // max(1, stored.size_bytes))
        start, stop = (rows.start, rows.stop) if rows is not None else (0, shape[0])
        if stored.offset is None:
            yield from self._load(stored.path)[name].contiguous().reshape(shape)[start:stop].split(rows_at_once)
            return
        file, row_bytes = self._file(stored.path), stored.size_bytes // max(1, shape[0])
        buffer = new_tensor((min(rows_at_once, stop - start), *shape[1:]), stored.dtype)
        for row in range(start, stop, rows_at_once):
            block = buffer[: stop - row]
            file.read_into(block, stored.offset + row * row_bytes)
            yield block

    def view(self, name: str) -> torch.Tensor | None:
        """The tensor in the mapped file, or None if impossible; valid after `close`. Writes stay in this process.

        If the file is shortened while it is mapped, the next access ends the process.
        """
        stored = self._stored[name]
        if not self._is_mapped or stored.offset is None:
            return None
        return self._file(stored.path).view(stored)

    def forget(self, name: str) -> None:
        """Give up the memory that a file which only torch can read holds for this tensor."""
        self._loaded.get(self._stored[name].path, {}).pop(name, None)

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()
        self._loaded.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _file(self, path: Path) -> RawFile:
        if path not in self._files:
            check_usable(path)
            listed = list_file(path)
            self._check(path, lambda name, stored: listed.get(name) == stored)
            self._files[path] = RawFile(path, self._is_mapped)
        return self._files[path]

    def _load(self, path: Path) -> dict[str, torch.Tensor]:
        if path not in self._loaded:
            check_usable(path)
            tensors = bin_format.read_tensors(path)
            self._check(path, lambda name, stored: name in tensors and _is_like(tensors[name], stored))
            self._loaded[path] = tensors
        return self._loaded[path]

    def _check(self, path: Path, is_same: Callable[[str, StoredTensor], bool]) -> None:
        if not all(is_same(name, stored) for name, stored in self._stored.items() if stored.path == path):
            raise DamagedFileError(f"{path} was changed while it was in use.", "Load the model again.")


def _is_like(tensor: torch.Tensor, stored: StoredTensor) -> bool:
    return (tuple(tensor.shape), tensor.dtype) == (stored.shape, stored.dtype)


def iter_tensors(
    source: Path | WeightFiles, is_wanted: Callable[[str], bool] = lambda name: True
) -> Iterator[tuple[str, torch.Tensor]]:
    """The wanted tensors of a folder, one by one; each owns its memory. Raises as `WeightReader`."""
    files = source if isinstance(source, WeightFiles) else find_weight_files(source)
    for path in files.paths:
        listed = list_file(path)
        with WeightReader(listed) as reader:
            for name in listed:
                if is_wanted(name):
                    yield name, reader.read(name)
                    reader.forget(name)
