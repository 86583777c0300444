"""Filling a network on the meta device: each stored tensor is read straight into its final type and place.

Peak: the network and a few megabytes, plus a file that only torch can read (a pickle of before 2020).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from chatglm.checkpoints import StoredTensor, WeightReader, convert_into, new_tensor, total_bytes
from chatglm.kernels.packing import quantize_rows
from chatglm.loading.placement import Placement
from chatglm.loading.tensor_parallel import Shard, Shards
from chatglm.loading.tied_embedding import head_copies, tie_embedding
from chatglm.progress import Progress
from chatglm.quantization.layers import QuantizedEmbedding, QuantizedLinear
from chatglm.sizes import format_bytes

SCALE = "weight_scale"
NOT_SHARDED: Shards = {}
WHOLE = Shard("first", 0, 1)


@dataclass(frozen=True)
class Filled:
    """Bytes of the files that were used, and bytes of them that are views of the mapped files."""

    num_read: int
    num_mapped: int


def fill_network(
    network: Any,
    stored: Mapping[str, StoredTensor],
    *,
    dtype: torch.dtype,
    device: torch.device,
    prefix: Mapping[str, Tensor],
    placement: Placement | None = None,
    shards: Shards = NOT_SHARDED,
    is_mapped: bool = False,
    is_left_out: Callable[[str], bool] = lambda name: False,
    progress: Progress | None = None,
) -> Filled:
    """Give every parameter and buffer of an empty network its memory and value; it is undefined when this raises.

    `dtype` is of all floating-point parameters; float weights of quantized layers are quantized in their stored type.
    `device` is of everything without a placement. `shards` has what this process reads of a tensor; others are whole.
    `prefix` replaces that of the folder. With `is_mapped` tensors that need no conversion are views of the mapped files
    (CPU only). Tensors that are `is_left_out` get no memory. `progress` gets (bytes read, bytes to read). Raises
    CheckpointError if a file changed since it was examined.
    """
    in_network = network.state_dict().keys() - prefix.keys()
    wanted = {name: tensor for name, tensor in stored.items() if name in in_network and not is_left_out(name)}
    num_read, num_all = 0, total_bytes(wanted.values())
    progress = progress or (lambda done, total: None)
    progress(0, num_all)
    with WeightReader(wanted, is_mapped=is_mapped) as reader:
        places = _Places(network, dtype, placement.device_of if placement is not None else lambda name: device, shards)
        copies = head_copies(network, wanted, reader)
        for name, tensor in wanted.items():
            if name not in copies:
                places.put(name, tensor, reader)
            reader.forget(name)
            num_read += tensor.size_bytes
            progress(num_read, num_all)
    for name, value in prefix.items():
        places.put_value(name, value)
    places.finish(is_left_out)
    return Filled(num_all, places.num_mapped)


def mapping_message(folder: Path, filled: Filled) -> str:
    """A message for a user who asked for mapped files and gained little; "" if most of them is used as it is."""
    if 2 * filled.num_mapped >= filled.num_read:
        return ""
    return (
        f"--mmap gains little: only {format_bytes(filled.num_mapped)} of {format_bytes(filled.num_read)} in {folder} "
        f"can be used as stored, the rest was converted. `python -m chatglm quantize {folder} NEW_FOLDER "
        "--embeddings 8` writes a folder for it."
    )


def type_in_network(name: str, stored: StoredTensor | Tensor, dtype: torch.dtype) -> torch.dtype:
    """The type that a stored tensor gets in a network of `dtype`.

    Integers stay; so do scales of groups, which are many, and under bfloat16 all scales: they would lose three bits.
    """
    if not stored.dtype.is_floating_point:
        return stored.dtype
    is_kept = name.endswith(SCALE) and (dtype == torch.bfloat16 or len(stored.shape) > 1)
    return stored.dtype if is_kept else dtype


class _Places:
    def __init__(
        self,
        network: Any,
        dtype: torch.dtype,
        device_of: Callable[[str], torch.device],
        shards: Shards = NOT_SHARDED,
    ) -> None:
        self.network, self.dtype, self.device_of, self.shards = network, dtype, device_of, shards
        self.num_mapped = 0

    def put(self, name: str, stored: StoredTensor, reader: WeightReader) -> None:
        owner = self.network.get_submodule(name.rpartition(".")[0])
        is_packed = isinstance(owner, QuantizedLinear | QuantizedEmbedding) and name.endswith(".weight")
        if is_packed and stored.dtype.is_floating_point:
            self._put_quantized(name, stored, owner, reader)
            return
        dtype = type_in_network(name, stored, self.dtype)
        device = self.device_of(name)
        if name in self.shards:
            self._put_shard(name, stored, reader, _new(self.shards[name].shape(stored.shape), dtype, device))
            return
        value = reader.view(name) if dtype == stored.dtype and device.type == "cpu" else None
        if value is not None:
            self.num_mapped += stored.size_bytes
        else:
            value = _new(stored.shape, dtype, device)
            reader.copy_to(name, value)
        self._set(name, value)

    def put_value(self, name: str, value: Tensor) -> None:
        self._set(name, value.to(self.device_of(name), type_in_network(name, value, self.dtype)))

    def finish(self, is_left_out: Callable[[str], bool]) -> None:
        """Add what the files do not hold: the tied head, and buffers (computed by a module's `reset_buffers()`)."""
        if self.network.spec.ties_embedding:
            tie_embedding(self.network)
        self.network.config.dtype = self.dtype
        for name, module in self.network.named_modules():
            if hasattr(module, "reset_buffers"):
                with torch.device(self.device_of(f"{name}.")):
                    module.reset_buffers()
        tensors = [*self.network.named_parameters(), *self.network.named_buffers()]
        empty = [name for name, tensor in tensors if tensor.is_meta and not is_left_out(name)]
        assert not empty, f"left without values: {empty}"  # validation has compared the names
        self.network.to(self.dtype)  # moves nothing; tells quantized layers what to compute in

    def _put_shard(self, name: str, stored: StoredTensor, reader: WeightReader, value: Tensor) -> None:
        shard, row = self.shards[name], 0
        for rows in shard.row_ranges(stored.shape[0]):
            for block in reader.blocks(name, rows=rows):
                convert_into(value[row : row + len(block)], shard.of_rows(block).contiguous())
                row += len(block)
        self._set(name, value)

    def _put_quantized(
        self, name: str, stored: StoredTensor, owner: QuantizedLinear | QuantizedEmbedding, reader: WeightReader
    ) -> None:
        """Quantize a stored float weight by blocks of whole rows: they are rounded independently of each other."""
        device, shard = self.device_of(name), self.shards.get(name, WHOLE)
        packed, scales, row = _new(tuple(owner.weight.shape), torch.int8, device), [], 0
        for rows in shard.row_ranges(stored.shape[0]):
            for block in reader.blocks(name, rows=rows):
                integers, scale = quantize_rows(block.to(device), owner.bits, owner.group_size)
                packed[row : row + len(block)] = shard.of_rows(integers)
                scales.append(shard.of_rows(scale))
                row += len(block)
        self._set(name, packed)
        self._set(f"{name}_scale", torch.cat(scales))

    def _set(self, name: str, value: Tensor) -> None:
        owner_name, _, leaf = name.rpartition(".")
        owner = self.network.get_submodule(owner_name)
        old = getattr(owner, leaf)
        is_parameter = isinstance(old, nn.Parameter)
        setattr(owner, leaf, nn.Parameter(value, requires_grad=old.requires_grad) if is_parameter else value)


def _new(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return new_tensor(shape, dtype) if device.type == "cpu" else torch.empty(shape, dtype=dtype, device=device)
