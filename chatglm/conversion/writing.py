"""A new model folder: shards, their index, config.json and the files beside them; it appears whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from chatglm.atomic import atomic_path, write_text
from chatglm.checkpoints import read_config
from chatglm.errors import ChatGLMError
from chatglm.sizes import format_bytes

SHARD_BYTES = 2 * 10**9
# Weights are written anew; code that came with a checkpoint is neither needed nor wanted.
LEFT_BEHIND = ("*.bin", "*.safetensors", "*.index.json", "*.py", "*.pyc", "config.json", ".*")


def check_absent(target: Path) -> None:
    """Raise ChatGLMError if there is something of that name other than an empty folder."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ChatGLMError(f"{target} exists already and was left alone.", "Give the name of a new folder.")


@contextmanager
def new_folder(target: Path, needed_bytes: int) -> Iterator[Path]:
    """A folder to write to, which takes the name `target` at the end of the block, or is removed if that fails.

    Raises ChatGLMError if `target` exists or cannot be written, or the disk has no room for `needed_bytes`.
    """
    check_absent(target)
    try:
        with atomic_path(target) as work:
            work.mkdir(parents=True)
            _check_room(target, work, needed_bytes)
            yield work
    except (OSError, SafetensorError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise ChatGLMError(f"{target} cannot be written: {reason}.", "Is the disk full?") from None


def _check_room(target: Path, work: Path, needed_bytes: int) -> None:
    free = shutil.disk_usage(work).free
    if free < needed_bytes:
        raise ChatGLMError(
            f"{target} needs {format_bytes(needed_bytes)}, but only {format_bytes(free)} are free on its disk.",
            "Make room, or give a folder on another disk.",
        )


def write_weights(folder: Path, tensors: Iterable[tuple[str, Tensor]], shard_bytes: int) -> None:
    """Write named tensors as safetensors; one shard of at most `shard_bytes` (or one tensor) is in memory at a time."""
    shards: list[Path] = []
    weight_map: dict[str, int] = {}
    shard: dict[str, Tensor] = {}
    total = 0

    def close_shard() -> None:
        path = folder / f"{len(shards) + 1}.part"
        save_file(shard, path, metadata={"format": "pt"})
        path.chmod(folder.stat().st_mode & 0o666)  # as other files are; safetensors leaves it to its owner alone
        weight_map.update(dict.fromkeys(shard, len(shards)))
        shards.append(path)
        shard.clear()

    for name, tensor in tensors:
        if shard and sum(kept.nbytes for kept in shard.values()) + tensor.nbytes > shard_bytes:
            close_shard()
        shard[name] = tensor
        total += tensor.nbytes
        del tensor  # or it would stay while the next one is made
    close_shard()
    _name_shards(folder, shards, weight_map, total)


def _name_shards(folder: Path, shards: list[Path], weight_map: Mapping[str, int], total: int) -> None:
    if len(shards) == 1:
        shards[0].rename(folder / "model.safetensors")
        return
    names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    for path, name in zip(shards, names, strict=True):
        path.rename(folder / name)
    index = {"metadata": {"total_size": total}, "weight_map": {key: names[i] for key, i in weight_map.items()}}
    write_json(folder / "model.safetensors.index.json", index)


def write_other_files(source: Path, folder: Path, keys: Mapping[str, Any]) -> None:
    """config.json with these keys; tokenizer, licence and whatever else lies beside the weights as it is."""
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns(*LEFT_BEHIND), dirs_exist_ok=True)
    config: dict[str, Any] = {key: value for key, value in read_config(source).items() if key != "auto_map"}
    write_json(folder / "config.json", {**config, **keys})


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file; see `atomic_path`."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
