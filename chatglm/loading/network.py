"""Filling a network with weights in bounded memory.

The network is built without memory (on the meta device); then each stored tensor is brought to its final type and
device and put in place, shard by shard. The peak is the finished network plus one shard at most.

Knows: tensors, types, devices, and that input and output embedding may be one table.
Does not know: where the folder comes from, or whether it is sound (chatglm.doctor).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from chatglm.checkpoints import StoredTensor, is_view_of_file, iter_tensors, total_bytes
from chatglm.quantization.layers import QuantizedLinear

Progress = Callable[[int, int], None]
ROWS_COMPARED_AT_ONCE = 4096
SCALE = "weight_scale"


def fill_network(
    network: Any,
    folder: Path,
    stored: Mapping[str, StoredTensor],
    *,
    dtype: torch.dtype,
    device: torch.device,
    prefix: Mapping[str, Tensor],
    progress: Progress | None = None,
) -> None:
    """Give every parameter and buffer of `network` its memory and value.

    Args:
        network: from `Family.empty_network`; in an undefined state when this raises.
        folder: examined and found sound.
        stored: its tensors.
        dtype: of all floating-point parameters. Where the network has quantized layers and the folder float weights,
            these are quantized in the type in which they are stored.
        device: of everything.
        prefix: values of a P-Tuning prefix, which go before those of the folder.
        progress: called with (bytes read, bytes to read).

    Raises:
        CheckpointError: a file changed since it was examined.
    """
    wanted = {name: stored[name] for name in network.state_dict() if name in stored and name not in prefix}
    num_read, num_all = 0, total_bytes(wanted.values())
    places = _Places(network, dtype, device)
    for name, tensor in iter_tensors(folder, wanted.__contains__):
        places.put(name, tensor, must_copy=is_view_of_file(stored[name].path))
        del tensor  # or its file would stay mapped while the next one is opened
        num_read += wanted[name].size_bytes
        if progress is not None:
            progress(num_read, num_all)
    for name, tensor in prefix.items():
        places.put(name, tensor, must_copy=True)
    places.finish()


class _Places:
    """The parameters of one network, filled one by one."""

    def __init__(self, network: Any, dtype: torch.dtype, device: torch.device) -> None:
        self.network, self.dtype, self.device = network, dtype, device
        self.embedding, self.head = network.get_input_embeddings(), network.get_output_embeddings()
        self.may_tie = getattr(network.config, "tie_word_embeddings", True) is not False

    def put(self, name: str, tensor: Tensor, *, must_copy: bool) -> None:
        owner_name, _, leaf = name.rpartition(".")
        owner = self.network.get_submodule(owner_name)
        if isinstance(owner, QuantizedLinear) and leaf == "weight" and tensor.is_floating_point():
            owner.load_float(tensor.to(self.device))
            return
        dtype = self._type_of(leaf, tensor)
        twin = {self.embedding: self.head, self.head: self.embedding}.get(owner)
        other = getattr(twin, leaf, None)
        if self.may_tie and other is not None and not other.is_meta and self._is_equal(tensor, dtype, other):
            setattr(owner, leaf, other)
            return
        value = tensor.to(self.device, dtype, copy=must_copy)
        old = getattr(owner, leaf)
        is_parameter = isinstance(old, nn.Parameter)
        setattr(owner, leaf, nn.Parameter(value, requires_grad=old.requires_grad) if is_parameter else value)

    def _type_of(self, leaf: str, tensor: Tensor) -> torch.dtype:
        """The type that a stored tensor gets: integers stay, and scales would lose three bits as bfloat16."""
        if not tensor.is_floating_point() or (leaf == SCALE and self.dtype == torch.bfloat16):
            return tensor.dtype
        return self.dtype

    def _is_equal(self, tensor: Tensor, dtype: torch.dtype, weight: Tensor) -> bool:
        """Whether `tensor` would become `weight`; compared by parts, since each may be a gigabyte."""
        parts = zip(tensor.split(ROWS_COMPARED_AT_ONCE), weight.split(ROWS_COMPARED_AT_ONCE), strict=True)
        return weight.dtype == dtype and all(torch.equal(part.to(self.device, dtype), other) for part, other in parts)

    def finish(self) -> None:
        """What the files do not hold: the head of a folder that stores one table for both, and computed buffers."""
        for leaf in ("weight", SCALE):
            if hasattr(self.head, leaf) and getattr(self.head, leaf).is_meta:
                setattr(self.head, leaf, getattr(self.embedding, leaf))
        self.network.config.tie_word_embeddings = self.head.weight is self.embedding.weight
        self.network.config.dtype = self.dtype
        with torch.device(self.device):
            for module in self.network.modules():
                if hasattr(module, "reset_buffers"):
                    module.reset_buffers()
        tensors = [*self.network.named_parameters(), *self.network.named_buffers()]
        empty = [name for name, tensor in tensors if tensor.is_meta]
        assert not empty, f"left without values: {empty}"  # the doctor has compared the names
        self.network.to(self.dtype)  # moves nothing; tells quantized layers what to compute in
