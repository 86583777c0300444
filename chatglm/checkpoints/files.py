"""Which files of a folder hold weights, whether each can be what its name says, and which tensors they hold."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from chatglm.checkpoints import bin_format, safetensors_format
from chatglm.checkpoints.folder import CONFIG_NAME, missing_config
from chatglm.checkpoints.stored import StoredTensor
from chatglm.errors import DamagedFileError, MismatchError, MissingFileError, PointerFileError

# In order of preference: a folder may hold the same weights in both formats, and safetensors needs no unpickling.
SINGLE_NAMES = ("model.safetensors", "pytorch_model.bin")
SHARD_NAME = re.compile(r"(?:pytorch_)?model-(\d+)-of-(\d+)\.(?:safetensors|bin)")

# A file of settings has some kB, the index of a model with a thousand tensors 100 kB.
MAX_JSON_BYTES = 4_000_000
MOST_SHARDS = 10_000
MOST_LEVELS = 100

POINTER_START = b"version https://git-lfs.github.com/spec/"
WEB_PAGE_STARTS = (b"<!doctype html", b"<html")


@dataclass(frozen=True)
class WeightFiles:
    """The files of a folder's weights in reading order, existing or not, and any index: tensor -> file name."""

    paths: tuple[Path, ...]
    index: Path | None = None
    weight_map: Mapping[str, str] = field(default_factory=dict)


def find_weight_files(folder: Path) -> WeightFiles:
    """The weight files of `folder`, by name.

    Raises MissingFileError if there is none, DamagedFileError or PointerFileError if the index cannot be read.
    """
    for name in SINGLE_NAMES:
        if (folder / name).exists():
            return WeightFiles((folder / name,))
        index = folder / f"{name}.index.json"
        if index.exists():
            return _indexed_files(index)
    shards = _numbered_shards(folder)
    if shards:
        return WeightFiles(shards)
    raise MissingFileError(
        f"There are no weights in {folder} (neither model.safetensors nor pytorch_model.bin, nor an index of shards).",
        "Download the weight files of the model into this folder.",
    )


def _indexed_files(index: Path) -> WeightFiles:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise DamagedFileError(f"{index} has no `weight_map`.", "Download this file again.")
    if not all(type(name) is str for name in weight_map.values()):
        raise DamagedFileError(f"{index} holds a `weight_map` that does not give file names.", "Download it again.")
    names = sorted(set(weight_map.values()))
    for name in names:
        # A name with a folder in it would let an index read files outside its own folder.
        if Path(name).name != name or "\\" in name:
            raise DamagedFileError(f"{index} names {name!r}, which is not a file of its folder.", "Download it again.")
    return WeightFiles(tuple(index.parent / name for name in names), index, weight_map)


def _numbered_shards(folder: Path) -> tuple[Path, ...]:
    """Shards `...-00001-of-00008...` whose index file is absent; all that their numbering promises, present or not."""
    for path in sorted(folder.iterdir()):
        match = SHARD_NAME.fullmatch(path.name)
        if match:
            first, count = match.span(1), int(match.group(2))
            if count > MOST_SHARDS:
                raise DamagedFileError(f"{path} is named as one of {count:,} files.", "Check the names of the files.")
            number = "{:0" + str(len(match.group(1))) + "d}"
            names = (path.name[: first[0]] + number.format(i) + path.name[first[1] :] for i in range(1, count + 1))
            return tuple(folder / name for name in names)
    return ()


def check_usable(path: Path) -> None:
    """Raise unless `path` is a file with content of its own.

    MissingFileError: absent, or a dead link. PointerFileError: Git LFS. DamagedFileError: empty, HTML, unreadable.
    """
    if not path.is_file():
        raise MissingFileError(f"{path} is missing.", f"Download {path.name} into {path.parent}.")
    try:
        with path.open("rb") as file:
            start = file.read(1024)
    except OSError as error:
        raise DamagedFileError(f"{path} cannot be read: {error.strerror}.", "Check its permissions.") from None
    if not start:
        raise DamagedFileError(f"{path} is empty.", "Download this file again.")
    if start.startswith(POINTER_START):
        raise PointerFileError(
            f"{path} is a Git-LFS pointer ({path.stat().st_size} bytes), not the file itself{_promised_size(start)}.",
            f"Run `git lfs install` and `git lfs pull` in {path.parent}, or download {path.name} by hand.",
        )
    if start.lstrip().lower().startswith(WEB_PAGE_STARTS):
        raise DamagedFileError(f"{path} is a web page, saved instead of the file.", "Download the file itself again.")


def _promised_size(pointer: bytes) -> str:
    match = re.search(rb"^size (\d+)", pointer, re.MULTILINE)
    return f", which has {int(match.group(1)):,} bytes" if match else ""


def read_json(path: Path, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """The object in the JSON file `path`, with or without a byte-order mark.

    Raises as `check_usable`, or DamagedFileError for anything else.
    """
    check_usable(path)
    check_json_size(path, max_bytes)
    try:
        content = json.loads(path.read_bytes())  # of bytes it recognises UTF-8 and UTF-16 by their marks
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"{path} is not readable JSON: {error}.", "Download this file again.") from None
    if not isinstance(content, dict):
        raise DamagedFileError(f"{path} holds no JSON object.", "Download this file again.")
    if _is_deep(content):  # copying it would exceed the stack
        raise DamagedFileError(f"{path} is nested deeper than {MOST_LEVELS} levels.", "Download this file again.")
    return content


def _is_deep(content: Any) -> bool:
    level = [content]
    for _ in range(MOST_LEVELS):
        parts = (part for value in level for part in (value.values() if isinstance(value, dict) else value))
        level = [part for part in parts if isinstance(part, dict | list)]
    return bool(level)


def check_json_size(path: Path, max_bytes: int = MAX_JSON_BYTES) -> None:
    """Raise DamagedFileError for a JSON file that is too large to be what its name says."""
    if (size := path.stat().st_size) > max_bytes:
        raise DamagedFileError(f"{path} has {size:,} bytes, too many for such a file.", "Download this file again.")


def read_config(folder: Path) -> dict[str, Any]:
    """The content of the folder's config.json; raises as `read_json`."""
    if not (folder / CONFIG_NAME).exists():
        raise missing_config(folder)
    return read_json(folder / CONFIG_NAME)


def list_file(path: Path) -> dict[str, StoredTensor]:
    """Name -> description of the tensors of one weight file, whose data are not read; raises as `check_usable`."""
    check_usable(path)
    reader: ModuleType = safetensors_format if path.suffix == ".safetensors" else bin_format
    return reader.list_tensors(path)


def read_notes(path: Path) -> dict[str, str]:
    """What the writer of a weight file noted in it; nothing in a .bin."""
    return safetensors_format.read_notes(path) if path.suffix == ".safetensors" else {}


def list_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Name -> description of all tensors; raises as `list_file`, or MismatchError for an incomplete shard."""
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
