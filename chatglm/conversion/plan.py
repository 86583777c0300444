"""Which weights of a folder are packed, and how: from what was asked for and what the folder holds.

Knows: the keys of a quantized config.json, and that the network made for them says which weights have scales.
Does not know how weights are rounded or written.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from chatglm.checkpoints.validate import ValidationReport
from chatglm.checkpoints.validate.expected_weights import EMBEDDING_NAME, HEAD_NAME, expected_shapes
from chatglm.errors import InvalidRequestError
from chatglm.kernels.packing import check_bits, check_group_size

DEFAULT_BITS = 4
SCALE_BYTES = 4  # at most


@dataclass(frozen=True)
class Packing:
    """How one weight is packed: 4 or 8 bits, and 0, 32, 64 or 128 columns that share a scale."""

    bits: int
    group_size: int = 0


@dataclass(frozen=True)
class Plan:
    """What becomes of a folder's weights.

    Attributes:
        packings: name of each weight to be packed -> how.
        copies_head: the folder stores one table for embedding and head; packed, it is written under both names, as
            published folders have it.
        keys: what its config.json says of it.
        config: the new folder's configuration.
        target_bytes: of the new folder's weights.
    """

    packings: Mapping[str, Packing]
    copies_head: bool
    keys: Mapping[str, Any]
    config: Any
    target_bytes: int

    @property
    def tables(self) -> set[str]:
        """Those of the weights to be packed that are embedding or head."""
        return self.packings.keys() & {EMBEDDING_NAME, HEAD_NAME}

    @property
    def linears(self) -> list[str]:
        """The others, in the order of the network."""
        return [name for name in self.packings if name not in self.tables]


def make_plan(report: ValidationReport, bits: int | None = None, group_size: int = 0, embedding_bits: int = 0) -> Plan:
    """The plan for a healthy folder.

    Args:
        report: of the folder.
        bits: 4 or 8 for the linear layers of the blocks; None: 4, or what the folder has.
        group_size: 0, 32, 64 or 128 of their columns share a scale.
        embedding_bits: 4 or 8 for the table that is embedding and head; 0 leaves it as it is.

    Raises:
        InvalidRequestError: there is no such packing, or it is done already.
    """
    config = deepcopy(report.config)
    if config.quantization_bit:
        _check_only_table(report, bits, group_size, embedding_bits)
    else:
        config.quantization_bit, config.quantization_group_size = DEFAULT_BITS if bits is None else bits, group_size
    config.quantization_embedding_bit = embedding_bits or config.quantization_embedding_bit
    config.quantization_embeddings = config.quantization_embedding_bit == config.quantization_bit
    _check_rows(config)
    return _plan_for(report, config)


def _check_only_table(report: ValidationReport, bits: int | None, group_size: int, embedding_bits: int) -> None:
    """Raise InvalidRequestError if more is asked of a quantized folder than to pack its table too."""
    has = report.config
    is_done = not embedding_bits or has.quantization_embedding_bit
    if is_done or bits not in (None, has.quantization_bit) or group_size not in (0, has.quantization_group_size):
        raise InvalidRequestError(
            f"{report.folder} is quantized to {has.quantization_bit} bits already.",
            "Give the unquantized folder.",
        )


def _check_rows(config: Any) -> None:
    """Raise InvalidRequestError if the rows of a weight cannot be packed so."""
    for num_columns in (config.hidden_size, config.inner_hidden_size):
        check_bits(config.quantization_bit, num_columns)
        check_group_size(config.quantization_group_size, num_columns)
    if config.quantization_embedding_bit:
        check_bits(config.quantization_embedding_bit, config.hidden_size)


def _plan_for(report: ValidationReport, config: Any) -> Plan:
    assert report.family is not None  # a healthy report has one
    expected = expected_shapes(report.family, config)
    linear = Packing(config.quantization_bit, config.quantization_group_size)
    table = Packing(config.quantization_embedding_bit)
    packings = {
        name: table if name in (EMBEDDING_NAME, HEAD_NAME) else linear
        for name in expected
        if f"{name}_scale" in expected and name in report.tensors and f"{name}_scale" not in report.tensors
    }
    copies_head = EMBEDDING_NAME in packings and HEAD_NAME not in report.tensors
    keys = {
        "quantization_bit": config.quantization_bit,
        "quantization_embeddings": config.quantization_embeddings,
        "quantization_embedding_bit": config.quantization_embedding_bit,
        "quantization_group_size": config.quantization_group_size,
    }
    return Plan(packings, copies_head, keys, config, _target_bytes(report, packings, copies_head))


def _target_bytes(report: ValidationReport, packings: Mapping[str, Packing], copies_head: bool) -> int:
    sizes = {name: tensor.size_bytes for name, tensor in report.tensors.items()}
    for name, packing in packings.items():
        rows, columns = report.tensors[name].shape
        num_scales = rows * (columns // packing.group_size if packing.group_size else 1)
        sizes[name] = rows * columns * packing.bits // 8 + num_scales * SCALE_BYTES
    return sum(sizes.values()) + (sizes[EMBEDDING_NAME] if copies_head else 0)
