"""What is known of a tensor in a file before its data is read."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class StoredTensor:
    """A stored tensor without its data, which begin at `offset`: None if only torch can read it (old file, view)."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    path: Path
    offset: int | None = None

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        return self.num_elements * self.dtype.itemsize


def total_bytes(tensors: Iterable[StoredTensor]) -> int:
    """Bytes of the data of `tensors`, as stored."""
    return sum(tensor.size_bytes for tensor in tensors)
