"""Which weights of a folder are packed, and how: from what was asked for and what the folder holds."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from chatglm.checkpoints.validate import ValidationReport
from chatglm.checkpoints.validate.expected_weights import expected_shapes
from chatglm.errors import InvalidRequestError
from chatglm.kernels.packing import check_bits, check_group_size
from chatglm.model_spec import ModelSpec

DEFAULT_BITS = 4
SCALE_BYTES = 4  # at most


@dataclass(frozen=True)
class Packing:
    """How one weight is packed: 4 or 8 bits, and 0, 32, 64 or 128 columns that share a scale."""

    bits: int
    group_size: int = 0


@dataclass(frozen=True)
class PackingPlan:
    """Which of a folder's weights are packed, and how; `keys` are what the new config.json says of it.

    `copies_head`: a tied embedding stored once is written under both names, as published folders have it.
    """

    packings: Mapping[str, Packing]
    copies_head: bool
    keys: Mapping[str, Any]
    spec: ModelSpec
    target_bytes: int

    @property
    def linears(self) -> list[str]:
        """The weights to be packed but embedding and head, in the order of the network."""
        return [name for name in self.packings if self.spec.layer_of(name) is not None]


def make_plan(
    report: ValidationReport, bits: int | None = None, group_size: int = 0, embedding_bits: int = 0
) -> PackingPlan:
    """The plan for a healthy folder.

    `bits`: 4 or 8 for the linear layers of the blocks; None = 4, or what the folder has. `group_size`: 0, 32, 64 or 128
    of their columns share a scale. `embedding_bits`: 4 or 8 for embedding and head; 0 leaves them. Raises
    InvalidRequestError if there is no such packing, or it is done already.
    """
    config = deepcopy(report.config)
    if config.quantization_bit:
        _check_only_embedding(report, bits, group_size, embedding_bits)
    else:
        config.quantization_bit, config.quantization_group_size = DEFAULT_BITS if bits is None else bits, group_size
    config.quantization_embedding_bit = embedding_bits or config.quantization_embedding_bit
    config.quantization_embeddings = config.quantization_embedding_bit == config.quantization_bit
    assert report.family is not None  # a healthy report has one
    spec = report.family.spec(config)
    _check_rows(config, spec)
    return _plan_for(report, config, spec)


def _check_only_embedding(report: ValidationReport, bits: int | None, group_size: int, embedding_bits: int) -> None:
    """Raise InvalidRequestError if more is asked of a quantized folder than to pack its embedding too."""
    has = report.config
    is_done = not embedding_bits or has.quantization_embedding_bit
    if is_done or bits not in (None, has.quantization_bit) or group_size not in (0, has.quantization_group_size):
        raise InvalidRequestError(
            f"{report.folder} is quantized to {has.quantization_bit} bits already.",
            "Give the unquantized folder.",
        )


def _check_rows(config: Any, spec: ModelSpec) -> None:
    for num_columns in {linear.columns for linear in spec.linears}:
        check_bits(config.quantization_bit, num_columns)
        check_group_size(config.quantization_group_size, num_columns)
    if config.quantization_embedding_bit:
        check_bits(config.quantization_embedding_bit, spec.hidden_size)


def _plan_for(report: ValidationReport, config: Any, spec: ModelSpec) -> PackingPlan:
    assert report.family is not None  # a healthy report has one
    expected = expected_shapes(report.family, config)
    linear = Packing(config.quantization_bit, config.quantization_group_size)
    embedding = Packing(config.quantization_embedding_bit)
    packings = {
        name: embedding if spec.layer_of(name) is None else linear
        for name in expected
        if f"{name}_scale" in expected and name in report.tensors and f"{name}_scale" not in report.tensors
    }
    copies_head = spec.embedding_weight in packings and spec.head_weight not in report.tensors
    keys = {
        "quantization_bit": config.quantization_bit,
        "quantization_embeddings": config.quantization_embeddings,
        "quantization_embedding_bit": config.quantization_embedding_bit,
        "quantization_group_size": config.quantization_group_size,
    }
    return PackingPlan(
        packings, copies_head, keys, spec, _target_bytes(report, packings, spec if copies_head else None)
    )


def _target_bytes(report: ValidationReport, packings: Mapping[str, Packing], copied: ModelSpec | None) -> int:
    sizes = {name: tensor.size_bytes for name, tensor in report.tensors.items()}
    for name, packing in packings.items():
        rows, columns = report.tensors[name].shape
        num_scales = rows * (columns // packing.group_size if packing.group_size else 1)
        sizes[name] = rows * columns * packing.bits // 8 + num_scales * SCALE_BYTES
    return sum(sizes.values()) + (sizes[copied.embedding_weight] if copied is not None else 0)
