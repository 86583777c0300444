"""The tensors of a folder, listed without their data.

Knows: which format a file has, and what an index promises. Does not know what the names mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

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
    return _format(path).list_tensors(path)


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


def _format(path: Path) -> ModuleType:
    return safetensors_format if path.suffix == ".safetensors" else bin_format
