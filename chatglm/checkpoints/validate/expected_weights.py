"""Do the tensors of a folder make up the network that its config.json describes?

Knows: names and shapes, what a quantized, a prefix-only and a later family's folder look like.
Does not know how the tensors were read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from chatglm.checkpoints import StoredTensor
from chatglm.devices import MemoryEstimate, estimate_memory
from chatglm.errors import CheckpointError, MismatchError, MissingFileError, UnsupportedModelError
from chatglm.models import Family

PREFIX_MARK = "prefix_encoder."
EMBEDDING_NAME = "transformer.word_embeddings.weight"
HEAD_START = "lm_head."
HEAD_NAME = f"{HEAD_START}weight"
BIT_KEYS = ("quantization_bit", "quantization_embedding_bit")
LATER_FAMILY_MARK = "transformer.encoder."
RELEASES = {150528: "the first release", 130528: "version 1.1, since April 2023"}
NUM_NAMED = 3  # so many names of missing or unexpected tensors are shown


def expected_shapes(family: Family, config: Any) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor that a network of this configuration stores; takes no memory for them."""
    return {name: tuple(tensor.shape) for name, tensor in family.empty_network(config).state_dict().items()}


def kept_parameters(network: Any, tensors: Mapping[str, StoredTensor]) -> list[torch.Tensor]:
    """The parameters that take memory: all but the output head where it will be the embedding, that is where it is not
    stored, or (as published) an equal copy."""
    is_shared = HEAD_NAME not in tensors or getattr(network.config, "tie_word_embeddings", True) is not False
    return [tensor for name, tensor in network.state_dict().items() if not (is_shared and name.startswith(HEAD_START))]


def bytes_in_memory(parameters: Iterable[torch.Tensor], dtype: torch.dtype) -> int:
    """Bytes of the parameters of an empty network once its values are of `dtype`. What is not float32 in it keeps its
    size: packed integers, and the half scales of groups."""
    return sum(
        tensor.numel() * (dtype if tensor.dtype == torch.float32 else tensor.dtype).itemsize for tensor in parameters
    )


def memory_needed(parameters: Iterable[torch.Tensor], config: Any, dtype: torch.dtype) -> MemoryEstimate:
    """What these parameters take as `dtype`, with the KV cache of one conversation that fills the context."""
    return estimate_memory(
        bytes_in_memory(parameters, dtype),
        dtype,
        config.max_sequence_length,
        num_layers=config.num_layers,
        hidden_size=config.hidden_size,
    )


def is_prefix_only(tensors: Mapping[str, StoredTensor]) -> bool:
    """Whether these are the trained part of a P-Tuning v2 model and nothing else."""
    return bool(tensors) and all(PREFIX_MARK in name for name in tensors)


def prefix_only(folder: Path) -> CheckpointError:
    """The error for a P-Tuning folder given as a model."""
    return MismatchError(
        f"{folder} holds only a P-Tuning prefix (transformer.prefix_encoder.*), not a whole model.",
        f"Load it on top of its base model: --model <chatglm-6b folder> --ptuning-checkpoint {folder}",
    )


def check_quantization(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, StoredTensor]
) -> CheckpointError | None:
    """The error for a folder whose config.json and weights do not agree on being quantized; None if they do."""
    key = next((key for key in BIT_KEYS if config.get(key)), None)
    packed = next((tensor for tensor in tensors.values() if tensor.dtype in (torch.int8, torch.uint8)), None)
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
    folder: Path, family: Family, config: Any, tensors: Mapping[str, StoredTensor], *, prefix_elsewhere: bool
) -> Iterator[CheckpointError]:
    """Every way in which the stored tensors differ from those that the configuration asks for.

    Args:
        folder: named in the sentences.
        family: builds the network to compare with.
        config: the family's configuration object.
        tensors: those stored.
        prefix_elsewhere: a prefix comes from another folder; this one's own is neither needed nor used.
    """
    if any(name.startswith(LATER_FAMILY_MARK) for name in tensors):
        yield UnsupportedModelError(
            f"The weights in {folder} are those of ChatGLM2 or ChatGLM3, not ChatGLM-6B.",
            "This family is not supported yet; use a chatglm-6b folder.",
        )
        return
    expected = expected_shapes(family, config)
    yield from _vocabulary(folder, config, tensors, expected)
    yield from _wrong_shapes(folder, tensors, expected)
    missing = [name for name in expected if name not in tensors]
    unexpected = [name for name in tensors if name not in expected and not _is_ignored(name, family)]
    prefix_names = [name for name in missing if PREFIX_MARK in name]
    if prefix_names and not prefix_elsewhere:
        yield MissingFileError(
            f"{folder / 'config.json'} has pre_seq_len {config.pre_seq_len}, but the weights hold no P-Tuning prefix.",
            "Give its folder with --ptuning-checkpoint, or remove pre_seq_len from config.json for the untuned model.",
        )
    # A folder may store the embedding alone: the output head is then the same table.
    missing = [name for name in missing if PREFIX_MARK not in name and not name.startswith(HEAD_START)]
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


def _vocabulary(
    folder: Path, config: Any, tensors: Mapping[str, StoredTensor], expected: Mapping[str, tuple[int, ...]]
) -> Iterator[CheckpointError]:
    stored = tensors.get(EMBEDDING_NAME)
    if stored is None or stored.shape[:1] == expected[EMBEDDING_NAME][:1]:
        return
    rows = stored.shape[0] if stored.shape else 0
    yield MismatchError(
        f"The embedding in {stored.path} has {describe_vocabulary(rows)}, "
        f"but {folder / 'config.json'} says {describe_vocabulary(config.vocab_size)}.",
        "Take config.json, tokenizer and all weight files from one release.",
    )


def describe_vocabulary(size: int) -> str:
    """A vocabulary with the release that it tells of."""
    return f"a vocabulary of {size} ({RELEASES[size]})" if size in RELEASES else f"a vocabulary of {size}"


def _wrong_shapes(
    folder: Path, tensors: Mapping[str, StoredTensor], expected: Mapping[str, tuple[int, ...]]
) -> Iterator[CheckpointError]:
    wrong = [name for name, shape in expected.items() if name in tensors and tensors[name].shape != shape]
    if EMBEDDING_NAME in wrong and tensors[EMBEDDING_NAME].shape[1:] == expected[EMBEDDING_NAME][1:]:
        wrong = [name for name in wrong if name not in (EMBEDDING_NAME, HEAD_NAME)]  # _vocabulary has said it better
    if wrong:
        name = wrong[0]
        yield MismatchError(
            f"{name} in {tensors[name].path} has the shape {list(tensors[name].shape)}, "
            f"but {folder / 'config.json'} asks for {list(expected[name])} ({len(wrong)} such tensors).",
            "Take config.json and all weight files from one download.",
        )


def _is_ignored(name: str, family: Family) -> bool:
    patterns = getattr(family.model_class, "_keys_to_ignore_on_load_unexpected", None) or ()
    return any(re.search(pattern, name) for pattern in patterns)


def _named(names: list[str]) -> str:
    return ", ".join(names[:NUM_NAMED]) + (", ..." if len(names) > NUM_NAMED else "")
