"""An open weight file: its bytes read into tensors, or mapped."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import torch

from chatglm.checkpoints.stored import StoredTensor
from chatglm.errors import DamagedFileError


class RawFile:
    """A file open for reading, mapped if asked; a change by anyone else is noticed at the next read.

    Raises DamagedFileError if it cannot be opened, MemoryError if the system refuses so much address space.
    """

    def __init__(self, path: Path, is_mapped: bool = False) -> None:
        self._path = path
        try:
            self._file = path.open("rb", buffering=0)
        except OSError as error:
            raise self._unreadable(error) from None
        self._state = self._look()
        self._mapping: mmap.mmap | None = None
        if is_mapped:
            try:
                self._mapping = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_COPY)
            except OSError as error:
                self.close()
                raise MemoryError(f"{path} cannot be mapped: {error.strerror}") from None
            if hasattr(os, "posix_fadvise"):
                # Reads on while others compute; a page asked for before it is there costs a read of a few kilobytes,
                # which on a cold file made the first answer five times slower.
                os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)

    def read_into(self, out: torch.Tensor, offset: int) -> None:
        """Fill a contiguous CPU tensor from `offset`; other threads run meanwhile.

        Raises DamagedFileError if the file ends before, cannot be read, or was changed since it was opened.
        """
        if out.numel() == 0:
            return
        rest = out.detach().reshape(-1).view(torch.uint8).numpy().data
        try:
            self._file.seek(offset)
            while rest:
                num_read = self._file.readinto(rest)
                if not num_read:
                    break
                rest = rest[num_read:]
        except OSError as error:
            raise self._unreadable(error) from None
        if rest or self._look() != self._state:
            raise DamagedFileError(
                f"{self._path} was changed while it was in use.", "Load the model again; download the file again."
            )

    def view(self, stored: StoredTensor) -> torch.Tensor | None:
        """The tensor at its place in the mapping, or None if there is none or the place is odd for its type."""
        if self._mapping is None or stored.offset is None or stored.offset % stored.dtype.itemsize:
            return None
        if stored.size_bytes == 0 or stored.offset + stored.size_bytes > len(self._mapping):
            return None
        flat = torch.frombuffer(self._mapping, dtype=stored.dtype, count=stored.num_elements, offset=stored.offset)
        return flat.reshape(stored.shape)

    def close(self) -> None:
        """Close the file. The mapping lives as long as its views."""
        self._file.close()
        self._mapping = None

    def _look(self) -> tuple[int, int]:
        status = os.fstat(self._file.fileno())
        return status.st_size, status.st_mtime_ns

    def _unreadable(self, error: OSError) -> DamagedFileError:
        return DamagedFileError(f"{self._path} cannot be read: {error.strerror}.", "Check the disk and permissions.")
