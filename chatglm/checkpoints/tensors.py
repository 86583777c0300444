"""The tensors of a folder: listed without their data, or streamed file by file.

Knows: which reader a file needs, and what an index promises. Does not know what the names mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType

import torch

from chatglm.checkpoints import bin_format, safetensors_format
from chatglm.checkpoints.files import WeightFiles, check_usable, find_weight_files
from chatglm.checkpoints.stored import StoredTensor
from chatglm.errors import MismatchError


def list_file(path: Path) -> dict[str, StoredTensor]:
    """Name -> description of the tensors of one weight file; its data is not read.

    Raises:
        MissingFileError, PointerFileError, DamagedFileError: the file cannot be used.
    """
    check_usable(path)
    return _reader(path).list_tensors(path)


def list_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Name -> description of all tensors of `folder`; raises at the first file that cannot be used.

    Raises:
        MissingFileError, PointerFileError, DamagedFileError: a file cannot be used.
        MismatchError: a shard lacks a tensor that the index promises.
    """
    files = find_weight_files(folder)
    tensors = {name: tensor for path in files.paths for name, tensor in list_file(path).items()}
    check_against_index(files, tensors)
    return tensors


def check_against_index(files: WeightFiles, tensors: Mapping[str, StoredTensor]) -> None:
    """Raise MismatchError when a tensor that the index promises is in none of the files."""
    lost = {name: file for name, file in files.weight_map.items() if name not in tensors}
    if lost:
        name, file = next(iter(lost.items()))
        raise MismatchError(
            f"{files.index} says that {file} holds {name}, but it does not ({len(lost)} such tensors).",
            "Take the index and all shards from one download.",
        )


def iter_tensors(
    source: Path | WeightFiles, is_wanted: Callable[[str], bool] = lambda name: True
) -> Iterator[tuple[str, torch.Tensor]]:
    """The wanted tensors of a folder, one by one and one file after the other.

    Let go of each tensor before asking for the next: those of a .bin file are views of the mapped file (copy what you
    keep), those of safetensors own their memory. `is_view_of_file` tells the two apart.

    Raises:
        MissingFileError, PointerFileError, DamagedFileError: a file cannot be used.
    """
    files = source if isinstance(source, WeightFiles) else find_weight_files(source)
    for path in files.paths:
        check_usable(path)
        yield from _reader(path).iter_tensors(path, is_wanted)


def is_view_of_file(path: Path) -> bool:
    """Whether the tensors that `iter_tensors` gives from this file end with its mapping."""
    return _reader(path) is bin_format


def _reader(path: Path) -> ModuleType:
    return safetensors_format if path.suffix == ".safetensors" else bin_format
