"""The trained prefix of a P-Tuning v2 run, as upstream saves it: a few tensors, with their sizes told by their shapes.

Knows: names and shapes of prefix tensors. Does not know how the prefix is used.

    embedding.weight      trans.0.weight   trans.2.weight       (P prefix length, L layers, C model width)
    [P, 2LC]              -                -                     without projection
    [P, C]                [C, C]           [2LC, C]              with projection
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from chatglm.checkpoints import StoredTensor, WeightFiles, find_weight_files, iter_tensors, list_file
from chatglm.errors import MismatchError, ModelNotFoundError

PREFIX_START = "transformer.prefix_encoder."
PREFIX_MARK = "prefix_encoder."


@dataclass(frozen=True)
class StoredPrefix:
    """A prefix on disk: where it is, what its shapes say, what training noted beside it (nothing in older files)."""

    files: WeightFiles
    tensors: Mapping[str, StoredTensor]
    pre_seq_len: int
    has_projection: bool
    notes: Mapping[str, str] = field(default_factory=dict)

    def read(self) -> dict[str, Tensor]:
        """Name in the network -> value, as stored."""
        read = iter_tensors(self.files, lambda name: PREFIX_MARK in name)
        return {_network_name(name): tensor for name, tensor in read}


def find_prefix(path: str | Path) -> StoredPrefix:
    """The prefix in `path`: a folder that training wrote, or a weight file in it.

    Whatever else it holds (a folder of full weights) is left alone.

    Raises:
        ModelNotFoundError: there is no such path.
        MissingFileError, PointerFileError, DamagedFileError: its files cannot be used.
        MismatchError: it holds no prefix.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise ModelNotFoundError(f"There is no P-Tuning folder {path}.", "Check --ptuning-checkpoint.")
    inner = sorted(path.glob("checkpoint-*"), key=lambda folder: folder.stat().st_mtime) if path.is_dir() else []
    if inner and not any(path.glob("*.bin")) and not any(path.glob("*.safetensors")):
        raise MismatchError(f"{path} holds no weights itself, but {inner[-1].name} in it may.", f"Give {inner[-1]}.")
    files = find_weight_files(path) if path.is_dir() else WeightFiles((path,))
    listed = {name: tensor for file in files.paths for name, tensor in list_file(file).items()}
    tensors = {_network_name(name): tensor for name, tensor in listed.items() if PREFIX_MARK in name}
    embedding = tensors.get(f"{PREFIX_START}embedding.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise MismatchError(
            f"{path} holds no P-Tuning prefix ({PREFIX_START}embedding.weight).",
            "Give a folder that P-Tuning training wrote; a whole model goes to --model.",
        )
    has_projection = f"{PREFIX_START}trans.0.weight" in tensors
    return StoredPrefix(files, tensors, embedding.shape[0], has_projection, _notes(files.paths[0]))


def check_prefix_fits(prefix: StoredPrefix, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raise MismatchError unless the prefix has exactly the shapes that the base model's network wants.

    Args:
        prefix: from `find_prefix`.
        expected: name -> shape of all tensors of a network made with the prefix's sizes.
    """
    wanted = {name: shape for name, shape in expected.items() if name.startswith(PREFIX_START)}
    for name in sorted(wanted.keys() | prefix.tensors.keys()):
        stored = prefix.tensors[name].shape if name in prefix.tensors else None
        if stored != wanted.get(name):
            raise MismatchError(
                f"The P-Tuning prefix in {prefix.files.paths[0]} does not fit this base model: {name} is "
                f"{_shape(stored)} there, but the base model needs {_shape(wanted.get(name))}.",
                "Give the base model that it was trained on.",
            )


def base_remark(prefix: StoredPrefix, fingerprint: str) -> str:
    """A sentence if the prefix was trained on another model than the one with this fingerprint, or nothing."""
    noted = prefix.notes.get("base_fingerprint", fingerprint)
    if noted == fingerprint:
        return ""
    return (
        f"The P-Tuning prefix in {prefix.files.paths[0]} was trained on another base model "
        f"({prefix.notes.get('base', 'unnamed')}): it fits by its shape, but answers may be worse for it."
    )


def configure_prefix(config: Any, prefix: StoredPrefix) -> None:
    """Make `config` that of a network with this prefix."""
    config.pre_seq_len, config.prefix_projection = prefix.pre_seq_len, prefix.has_projection


def _notes(path: Path) -> dict[str, str]:
    if path.suffix != ".safetensors":
        return {}
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


def _network_name(name: str) -> str:
    return PREFIX_START + name.partition(PREFIX_MARK)[2]


def _shape(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else str(list(shape))
