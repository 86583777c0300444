"""Offloading: a layer's weights are read from the checkpoint into a slot, and in memory only while it computes."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from chatglm.checkpoints import StoredTensor, WeightReader, new_tensor
from chatglm.errors import InvalidRequestError
from chatglm.loading.fill import type_in_network
from chatglm.loading.prefetch import ReadAhead

ALIGNMENT = 64  # of tensors in a buffer: a line of the processor's cache

Form = tuple[tuple[int, ...], torch.dtype]


@dataclass(frozen=True)
class _Weight:
    """One parameter of a block: `owner.leaf`, which is `empty` between calls; `places` has its values in each slot."""

    owner: nn.Module
    leaf: str
    empty: nn.Parameter
    places: Sequence[Tensor]

    def put(self, slot: int) -> None:
        """Give the layer its value. The parameter is a new object: whoever keeps something for it drops that later."""
        setattr(self.owner, self.leaf, nn.Parameter(self.places[slot], requires_grad=False))

    def remove(self) -> None:
        setattr(self.owner, self.leaf, self.empty)


def stream_blocks(
    network: Any,
    blocks: Sequence[str],
    stored: Mapping[str, StoredTensor],
    *,
    dtype: torch.dtype,
    num_slots: int,
) -> weakref.finalize[[], Any]:
    """Let `blocks` (in the order of use) read their weights whenever they compute; only inference works from then on.

    Threads take turns. With 2 slots the next block is read while one computes. A file changed meanwhile ends a request
    with DamagedFileError. Returns what ends the reading when called, or when the network is collected.
    """
    modules = [network.get_submodule(name) for name in blocks]
    names = [
        [f"{name}.{leaf}" for leaf, _ in module.named_parameters()]
        for name, module in zip(blocks, modules, strict=True)
    ]
    forms = [[(stored[name].shape, type_in_network(name, stored[name], dtype)) for name in block] for block in names]
    slots = [_buffer(forms) for _ in range(num_slots)]
    views = [[_cut(slot, block) for slot in slots] for block in forms]
    reader = WeightReader({name: stored[name] for block in names for name in block})

    def read(item: int, slot: int) -> None:
        for name, place in zip(names[item], views[item][slot], strict=True):
            reader.copy_to(name, place)

    ahead = ReadAhead(read, len(blocks), num_slots)
    for index, module in enumerate(modules):
        _wrap(module, ahead, index, _parts(module, views[index]))
    _allow_inference_only(network, blocks)

    def close() -> None:
        ahead.close()
        reader.close()

    return weakref.finalize(network, close)


def _buffer(blocks: Sequence[Sequence[Form]]) -> Tensor:
    """Bytes enough for the tensors of any of these blocks."""
    sizes = [sum(_padded(form) for form in block) for block in blocks]
    return new_tensor((max(sizes),), torch.uint8)


def _cut(buffer: Tensor, forms: Sequence[Form]) -> list[Tensor]:
    views, start = [], 0
    for form in forms:
        shape, dtype = form
        views.append(buffer[start : start + _size(form)].view(dtype).reshape(shape))
        start += _padded(form)
    return views


def _size(form: Form) -> int:
    return torch.Size(form[0]).numel() * form[1].itemsize


def _padded(form: Form) -> int:
    return -(-_size(form) // ALIGNMENT) * ALIGNMENT


def _parts(block: nn.Module, views: Sequence[Sequence[Tensor]]) -> list[_Weight]:
    parts = []
    for (name, empty), *places in zip(block.named_parameters(), *views, strict=True):
        owner_name, _, leaf = name.rpartition(".")
        parts.append(_Weight(block.get_submodule(owner_name), leaf, empty, places))
    return parts


def _wrap(block: nn.Module, ahead: ReadAhead, index: int, parts: Sequence[_Weight]) -> None:
    inner = block.forward

    @functools.wraps(inner)
    def forward(*args: Any, **options: Any) -> Any:
        if torch.is_grad_enabled() and any(isinstance(arg, Tensor) and arg.requires_grad for arg in args):
            _refuse()
        with _loaded(ahead, index, parts):
            return inner(*args, **options)

    block.forward = forward


@contextmanager
def _loaded(ahead: ReadAhead, index: int, parts: Sequence[_Weight]) -> Iterator[None]:
    with ahead.taken(index) as slot:
        try:
            for part in parts:
                part.put(slot)
            yield
        finally:
            for part in parts:
                part.remove()


def _allow_inference_only(network: Any, blocks: Sequence[str]) -> None:
    network.requires_grad_(False)
    network.save_pretrained = network.quantize = _refuse
    for name, module in network.named_modules():
        if any(block == name or block.startswith(f"{name}.") or not name for block in blocks):
            module._apply = _refuse  # behind .to(), .half(), .float(), .cuda()
            module.register_state_dict_pre_hook(_refuse)


def _refuse(*args: Any, **options: Any) -> NoReturn:
    raise InvalidRequestError(
        "A model under --max-memory holds only some of its weights: it answers, and cannot be saved, moved, quantized "
        "or trained.",
        "Load it without --max-memory for that.",
    )
