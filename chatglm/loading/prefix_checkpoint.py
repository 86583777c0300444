"""The trained prefix of a P-Tuning v2 run, as upstream saves it (P prefix length, L layers, W = G * D width of keys).

embedding.weight [P, 2LW]; with projection [P, W], trans.0.weight [W, W], trans.2.weight [2LW, W]
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from chatglm.checkpoints import StoredTensor, WeightFiles, find_weight_files, iter_tensors, list_file
from chatglm.checkpoints.folder import folder_error
from chatglm.errors import MismatchError
from chatglm.model_spec import ModelSpec

PREFIX_MARK = "prefix_encoder."
CHECK_THE_FLAG = "请检查 --ptuning-checkpoint。Check --ptuning-checkpoint."


@dataclass(frozen=True)
class StoredPrefix:
    """A prefix on disk: name inside the prefix encoder -> tensor, and the files."""

    files: WeightFiles
    tensors: Mapping[str, StoredTensor]
    pre_seq_len: int
    has_projection: bool

    def read(self, spec: ModelSpec) -> dict[str, Tensor]:
        """Name in a network of `spec` -> value, as stored."""
        read = iter_tensors(self.files, lambda name: PREFIX_MARK in name)
        return {f"{spec.prefix_encoder}.{_leaf(name)}": tensor for name, tensor in read}


def find_prefix(path: str | Path) -> StoredPrefix:
    """The prefix in `path`: a folder that training wrote, or a weight file; other tensors in it are ignored.

    Raises ModelNotFoundError, MissingFileError, PointerFileError or DamagedFileError, or MismatchError for no prefix.
    """
    path = Path(path).expanduser()
    if not os.path.isfile(path) and (error := folder_error(path, CHECK_THE_FLAG)) is not None:
        raise error
    inner = sorted(path.glob("checkpoint-*"), key=lambda folder: folder.stat().st_mtime) if path.is_dir() else []
    if inner and not any(path.glob("*.bin")) and not any(path.glob("*.safetensors")):
        raise MismatchError(f"{path} holds no weights itself, but {inner[-1].name} in it may.", f"Give {inner[-1]}.")
    files = find_weight_files(path) if path.is_dir() else WeightFiles((path,))
    listed = {name: tensor for file in files.paths for name, tensor in list_file(file).items()}
    tensors = {_leaf(name): tensor for name, tensor in listed.items() if PREFIX_MARK in name}
    embedding = tensors.get("embedding.weight")
    are_numbers = all(tensor.dtype.is_floating_point for tensor in tensors.values())
    if embedding is None or len(embedding.shape) != 2 or not are_numbers:
        raise MismatchError(
            f"{path} holds no P-Tuning prefix ({PREFIX_MARK}embedding.weight).",
            "Give a folder that P-Tuning training wrote; a whole model goes to --model.",
        )
    has_projection = "trans.0.weight" in tensors
    return StoredPrefix(files, tensors, embedding.shape[0], has_projection)


def check_prefix_fits(prefix: StoredPrefix, spec: ModelSpec, config: Any) -> None:
    """Raise MismatchError unless the prefix has exactly the shapes that a network of `spec` and `config` needs."""
    entry, inner = spec.prefix_projection
    wanted: dict[str, tuple[int, ...]] = {
        "embedding.weight": (config.pre_seq_len, entry if config.prefix_projection else spec.prefix_width)
    }
    if config.prefix_projection:
        wanted |= {"trans.0.weight": (inner, entry), "trans.0.bias": (inner,)}
        wanted |= {"trans.2.weight": (spec.prefix_width, inner), "trans.2.bias": (spec.prefix_width,)}
    for name in sorted(wanted.keys() | prefix.tensors.keys()):
        stored, needed = prefix.tensors[name].shape if name in prefix.tensors else None, wanted.get(name)
        if stored != needed:
            raise MismatchError(
                f"The P-Tuning prefix in {prefix.files.paths[0]} does not fit this base model: "
                f"{spec.prefix_encoder}.{name} is {_shape(stored)} there, but the base model needs {_shape(needed)}.",
                "Give the base model that it was trained on.",
            )


def _leaf(name: str) -> str:
    return name.partition(PREFIX_MARK)[2]


def _shape(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else str(list(shape))
