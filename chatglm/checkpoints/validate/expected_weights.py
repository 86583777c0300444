"""Do the tensors of a folder make up the network that its config.json describes?"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from chatglm.checkpoints import StoredTensor
from chatglm.checkpoints.validate.findings import ValidatedFamily
from chatglm.errors import CheckpointError, DamagedFileError, MismatchError, MissingFileError, UnsupportedModelError
from chatglm.model_spec import ModelSpec

PREFIX_MARK = "prefix_encoder."
BIT_KEYS = ("quantization_bit", "quantization_embedding_bit")
PACKED_TYPES = (torch.int8, torch.uint8)
NUM_NAMED = 3  # names of missing or unexpected tensors that a message lists
Shapes = dict[str, tuple[int, ...]]


def expected_shapes(family: ValidatedFamily, config: Any) -> Shapes:
    """Name -> shape of every tensor that a network of this configuration stores."""
    return {name: tuple(tensor.shape) for name, tensor in _expected(family, config).items()}


def _expected(family: ValidatedFamily, config: Any) -> Mapping[str, torch.Tensor]:
    """Name -> tensor without memory."""
    return family.empty_network(config).state_dict()


def is_prefix_only(tensors: Mapping[str, StoredTensor]) -> bool:
    """Whether these are the trained part of a P-Tuning v2 model and nothing else."""
    return bool(tensors) and all(PREFIX_MARK in name for name in tensors)


def prefix_only(folder: Path) -> CheckpointError:
    """The error for a P-Tuning folder given as a model."""
    return MismatchError(
        f"{folder} holds only a P-Tuning prefix ({PREFIX_MARK}*), not a whole model.",
        f"Load it on top of its base model: --model <chatglm-6b folder> --ptuning-checkpoint {folder}",
    )


def check_quantization(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, StoredTensor]
) -> CheckpointError | None:
    """The error for a folder whose config.json and weights do not agree on being quantized; None if they do."""
    key = next((key for key in BIT_KEYS if config.get(key)), None)
    packed = next((tensor for tensor in tensors.values() if tensor.dtype in PACKED_TYPES), None)
    if key and tensors and packed is None:
        return MismatchError(
            f"{folder / 'config.json'} says {key} {config[key]}, but the weights are not quantized.",
            f"Set {key} to 0 there, or take config.json and weights from one download.",
        )
    if packed is not None and not key:
        return MismatchError(
            f"{packed.path} holds quantized weights, but {folder / 'config.json'} does not say of how many bits.",
            "Take config.json from the same download (it has quantization_bit 4 or 8).",
        )
    return None


def compare_weights(
    folder: Path, family: ValidatedFamily, config: Any, tensors: Mapping[str, StoredTensor], *, prefix_elsewhere: bool
) -> Iterator[CheckpointError]:
    """Every way in which the stored tensors differ from those that the configuration asks for.

    With `prefix_elsewhere` a prefix comes from another folder; this one's own is neither needed nor used.
    """
    spec = family.spec(config)
    for start, other in spec.foreign_tensors.items():
        if any(name.startswith(start) for name in tensors):
            yield UnsupportedModelError(
                f"The weights in {folder} are those of {other}, not {family.name}.",
                "Take config.json and all weight files from one download.",
            )
            return
    network = _expected(family, config)
    expected = {name: tuple(tensor.shape) for name, tensor in network.items()}
    yield from _vocabulary(folder, spec, tensors)
    yield from _wrong_types(tensors, network)
    yield from _wrong_shapes(folder, spec, tensors, expected)
    missing = [name for name in expected if name not in tensors]
    unexpected = [
        name
        for name in tensors
        if name not in expected and not any(re.search(pattern, name) for pattern in spec.ignored_tensors)
    ]
    if any(PREFIX_MARK in name for name in missing) and not prefix_elsewhere:
        yield MissingFileError(
            f"{folder / 'config.json'} has pre_seq_len {config.pre_seq_len}, but the weights hold no P-Tuning prefix.",
            "Give its folder with --ptuning-checkpoint, or remove pre_seq_len from config.json for the untuned model.",
        )
    missing = [name for name in missing if PREFIX_MARK not in name]
    if spec.ties_embedding:  # a folder may store the embedding alone
        missing = [name for name in missing if not name.startswith(f"{spec.head}.")]
    if missing:
        yield MismatchError(
            f"{len(missing)} tensors of the model are missing in {folder}: {_named(missing)}.",
            "Take config.json, the index and all weight files from one download.",
        )
    if unexpected and not (prefix_elsewhere and all(PREFIX_MARK in name for name in unexpected)):
        where = tensors[unexpected[0]].path
        yield MismatchError(
            f"{len(unexpected)} tensors in {where} are unknown to the model of config.json: {_named(unexpected)}.",
            "Take config.json and all weight files from one download.",
        )


def describe_vocabulary(size: int, spec: ModelSpec) -> str:
    """A vocabulary with the release that it tells of."""
    return f"a vocabulary of {size}" + (f" ({spec.releases[size]})" if size in spec.releases else "")


def _vocabulary(folder: Path, spec: ModelSpec, tensors: Mapping[str, StoredTensor]) -> Iterator[CheckpointError]:
    stored = tensors.get(spec.embedding_weight)
    if stored is None or stored.shape[:1] == (spec.vocab_size,):
        return
    yield MismatchError(
        f"The embedding in {stored.path} has {describe_vocabulary(stored.shape[0] if stored.shape else 0, spec)}, "
        f"but {folder / 'config.json'} says {describe_vocabulary(spec.vocab_size, spec)}.",
        "Take config.json, tokenizer and all weight files from one release.",
    )


def _wrong_types(tensors: Mapping[str, StoredTensor], network: Mapping[str, torch.Tensor]) -> Iterator[CheckpointError]:
    """Fractions must be stored as such; packed weights are signed bytes, or fractions that will be packed."""
    wrong = [
        name
        for name, tensor in network.items()
        if name in tensors
        and not tensors[name].dtype.is_floating_point
        and tensors[name].dtype != tensor.dtype
        and f"{name}_scale" not in tensors.keys() - network.keys()  # packed against the configuration: reported so
    ]
    if wrong:
        kind = str(tensors[wrong[0]].dtype).removeprefix("torch.")
        yield DamagedFileError(
            f"{wrong[0]} in {tensors[wrong[0]].path} is stored as {kind}, which weights never are "
            f"({len(wrong)} such tensors).",
            "Download this file again.",
        )


def _wrong_shapes(
    folder: Path, spec: ModelSpec, tensors: Mapping[str, StoredTensor], expected: Shapes
) -> Iterator[CheckpointError]:
    wrong = [name for name, shape in expected.items() if name in tensors and tensors[name].shape != shape]
    embedding = spec.embedding_weight
    if embedding in wrong and tensors[embedding].shape[1:] == expected[embedding][1:]:
        wrong = [name for name in wrong if name not in (embedding, spec.head_weight)]  # reported by _vocabulary
    if wrong:
        name = wrong[0]
        yield MismatchError(
            f"{name} in {tensors[name].path} has the shape {list(tensors[name].shape)}, "
            f"but {folder / 'config.json'} asks for {list(expected[name])} ({len(wrong)} such tensors).",
            "Take config.json and all weight files from one download.",
        )


def _named(names: list[str]) -> str:
    return ", ".join(names[:NUM_NAMED]) + (", ..." if len(names) > NUM_NAMED else "")
