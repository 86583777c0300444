"""Writes a folder as safetensors, as it is or with packed weights, holding one shard of it in memory at a time.

Knows: the order of shards, the files beside the weights, that a folder appears whole or not at all.
Does not know how weights are rounded (chatglm.quantization) or read (chatglm.checkpoints).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from chatglm.checkpoints import StoredTensor, is_view_of_file, iter_tensors, read_config, total_bytes
from chatglm.doctor import Report, examine
from chatglm.doctor.weights import expected_shapes
from chatglm.errors import ChatGLMError, InvalidRequestError
from chatglm.quantization.packing import check_bits, quantize_rows

Progress = Callable[[int, int], None]
SHARD_BYTES = 2 * 10**9
# Weights are written anew; code that came with a checkpoint is neither needed nor wanted.
LEFT_BEHIND = ("*.bin", "*.safetensors", "*.index.json", "*.py", "*.pyc", "config.json", ".*")


def convert_folder(
    source: Path,
    target: Path,
    *,
    bits: int | None = None,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
) -> None:
    """Write the model in `source` to the new folder `target`.

    `target` appears when everything is written; until then the work is in a folder beside it, which is removed if
    anything goes wrong.

    Args:
        source: a sound model folder.
        target: must not exist, or be an empty folder.
        bits: None keeps the weights as they are; 4 or 8 packs the layers that published int4 and int8 folders pack.
        shard_bytes: a new file begins when this much would be exceeded; also the most that is held in memory.
        progress: called with (bytes read, bytes to read).

    Raises:
        CheckpointError: `source` cannot be used.
        InvalidRequestError: bits is not 4 or 8, or `source` is quantized already.
        ChatGLMError: `target` exists, or cannot be written.
    """
    report = examine(source)
    report.raise_first()
    packed = _names_to_pack(report, bits)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ChatGLMError(f"{target} exists already and was left alone.", "Give the name of a new folder.")
    work = target.with_name(f".{target.name}.unfinished")
    try:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        _write_weights(report, work, packed, bits or 0, shard_bytes, progress)
        _write_other_files(source, work, bits)
        if target.exists():
            target.rmdir()
        work.rename(target)
    except OSError as error:
        raise ChatGLMError(f"{target} cannot be written: {error.strerror or error}.", "Is the disk full?") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _names_to_pack(report: Report, bits: int | None) -> set[str]:
    """The weights that a quantized network of this configuration holds with a scale."""
    if bits is None:
        return set()
    check_bits(bits)
    if report.config.quantization_bit:
        raise InvalidRequestError(
            f"{report.folder} is quantized to {report.config.quantization_bit} bits already.",
            "Give the unquantized folder.",
        )
    assert report.family is not None  # a healthy report has one
    report.config.quantization_bit = bits
    expected = expected_shapes(report.family, report.config)
    return {name for name in expected if f"{name}_scale" in expected}


def _write_weights(
    report: Report, work: Path, packed: set[str], bits: int, shard_bytes: int, progress: Progress | None
) -> None:
    shards: list[Path] = []
    weight_map: dict[str, int] = {}
    shard: dict[str, Tensor] = {}
    total = 0

    def close_shard() -> None:
        path = work / f"{len(shards) + 1}.part"
        save_file(shard, path, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(shard, len(shards)))
        shards.append(path)
        shard.clear()

    for name, tensor in _converted(report, packed, bits, progress):
        size = tensor.numel() * tensor.element_size()
        if shard and sum(t.numel() * t.element_size() for t in shard.values()) + size > shard_bytes:
            close_shard()
        shard[name] = tensor
        total += size
    close_shard()
    _name_shards(work, shards, weight_map, total)


def _name_shards(work: Path, shards: list[Path], weight_map: Mapping[str, int], total: int) -> None:
    """Give the files the names under which every loader looks for them, and an index if there are several."""
    if len(shards) == 1:
        shards[0].rename(work / "model.safetensors")
        return
    names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    for path, name in zip(shards, names, strict=True):
        path.rename(work / name)
    index = {"metadata": {"total_size": total}, "weight_map": {key: names[i] for key, i in weight_map.items()}}
    _write_json(work / "model.safetensors.index.json", index)


def _converted(report: Report, packed: set[str], bits: int, progress: Progress | None) -> Iterator[tuple[str, Tensor]]:
    """The tensors of the new folder, in the order of the old files."""
    wanted: dict[str, StoredTensor] = {k: v for k, v in report.tensors.items() if not k.endswith(".inv_freq")}
    num_read, num_all = 0, total_bytes(wanted.values())
    for name, tensor in iter_tensors(report.folder, wanted.__contains__):
        if name in packed:
            integers, scale = quantize_rows(tensor, bits)
            yield name, integers
            yield f"{name}_scale", scale
        else:
            must_copy = is_view_of_file(wanted[name].path)
            yield name, tensor.clone() if must_copy else tensor.contiguous()
        num_read += wanted[name].size_bytes
        if progress is not None:
            progress(num_read, num_all)


def _write_other_files(source: Path, work: Path, bits: int | None) -> None:
    """config.json for the new weights; tokenizer, licence and whatever else lies beside them as it is."""
    shutil.copytree(source, work, ignore=shutil.ignore_patterns(*LEFT_BEHIND), dirs_exist_ok=True)
    config: dict[str, Any] = {key: value for key, value in read_config(source).items() if key != "auto_map"}
    if bits is not None:
        config |= {"quantization_bit": bits, "quantization_embeddings": False}
    _write_json(work / "config.json", config)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
