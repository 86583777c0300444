"""Which part of a network lies on which GPU: layers in order, all else on the first. It makes room, not speed."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch

from chatglm.devices import available_memory, choose_device
from chatglm.errors import InvalidRequestError, OutOfMemoryError
from chatglm.loading.tied_embedding import may_tie
from chatglm.model_spec import ModelSpec
from chatglm.models import family_of
from chatglm.sizes import format_bytes

DeviceMap = dict[str, int]
# Of what is free: the rest is for caches, activations and the libraries' own needs.
USABLE = 0.9


@dataclass(frozen=True)
class Placement:
    """Where every part of a network lies: part -> number of its device, and the devices by number."""

    device_map: DeviceMap
    devices: tuple[torch.device, ...]
    spec: ModelSpec

    def device_of(self, name: str) -> torch.device:
        return self.devices[self.device_map.get(part_of(name, self.spec), 0)]


def part_of(name: str, spec: ModelSpec) -> str:
    """The part that a parameter belongs to: `transformer.layers.3.mlp.dense.weight` -> `transformer.layers.3`."""
    if (number := spec.layer_of(name)) is not None:
        return f"{spec.layers}.{number}"
    known = (spec.embedding, spec.final_norm, spec.head, spec.prefix_encoder)
    return next((part for part in known if name.startswith(f"{part}.")), name.rpartition(".")[0])


def part_sizes(network: Any, dtype: torch.dtype) -> dict[str, int]:
    """Bytes of each part of an empty network as `dtype`, layers in order; a head that will be tied has none."""
    sizes: dict[str, int] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        width = dtype.itemsize if parameter.is_floating_point() else parameter.element_size()
        part = part_of(name, network.spec)
        is_tied = part == network.spec.head and may_tie(network)
        sizes[part] = sizes.get(part, 0) + (0 if is_tied else parameter.numel() * width)
    return sizes


def place(sizes: Mapping[str, int], shares: Sequence[float], spec: ModelSpec) -> DeviceMap:
    """Spread parts (name -> bytes) over devices in proportion to `shares`; all get some if layers suffice."""
    layers = sorted(
        (part for part in sizes if _layer(part, spec) is not None), key=lambda part: _layer(part, spec) or 0
    )
    layer_bytes = sum(sizes[part] for part in layers)
    total = sum(sizes.values())
    rooms = [total * share / sum(shares) for share in shares]
    rooms[0] = max(0.0, rooms[0] - (total - layer_bytes))
    bounds = [bound * layer_bytes / sum(rooms) for bound in accumulate(rooms)]
    device_map, used = dict.fromkeys(sizes, 0), 0
    for part in layers:
        middle = used + sizes[part] / 2
        device_map[part] = min(bisect_right(bounds, middle), len(shares) - 1)
        used += sizes[part]
    return device_map


def auto_configure_device_map(num_gpus: int) -> DeviceMap:
    """Even shares of ChatGLM-6B in fp16: part -> number of its GPU. The first also has the embedding."""
    check_num_gpus(num_gpus)
    family = family_of({"model_type": "chatglm"})
    network = family.empty_network(family.config({}))
    return place(part_sizes(network, torch.float16), [1.0] * num_gpus, network.spec)


def check_num_gpus(num_gpus: int) -> None:
    """Raise InvalidRequestError unless it is a number of GPUs."""
    if type(num_gpus) is not int or num_gpus < 1:
        raise InvalidRequestError(f"num_gpus is the number of GPUs to use, not {num_gpus!r}.")


def plan_placement(
    network: Any, dtype: torch.dtype, num_devices: int, device_map: Mapping[str, Any] | None
) -> Placement:
    """Where the parts of an empty network go: cuda:0, cuda:1, ... or as `device_map` (part -> number) says.

    Raises DeviceError for too few GPUs, InvalidRequestError if the map leaves parts out, names unknown ones or is no
    map of whole numbers, OutOfMemoryError (with the numbers) if a part does not fit.
    """
    sizes = part_sizes(network, dtype)
    if device_map is not None:
        _check_map(device_map, sizes)
        num_devices = max(device_map.values()) + 1
    devices = tuple(choose_device(f"cuda:{number}") for number in range(num_devices))
    free = [available_memory(device) for device in devices]
    known = [size for size in free if size is not None]
    shares = [float(size) for size in known] if len(known) == len(free) else [1.0] * num_devices
    chosen = dict(device_map) if device_map is not None else place(sizes, shares, network.spec)
    _check_room(chosen, sizes, free)
    return Placement(chosen, devices, network.spec)


def apply_placement(network: Any, placement: Placement) -> None:
    """Let a network whose parts lie where they belong hand its activations from device to device."""
    from accelerate import dispatch_model

    named = {part: placement.devices[number] for part, number in placement.device_map.items()}
    dispatch_model(network, named, main_device=placement.devices[0], force_hooks=True)


def _layer(part: str, spec: ModelSpec) -> int | None:
    return spec.layer_of(f"{part}.")


def _check_map(device_map: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
    missing, unknown = sorted(sizes.keys() - device_map.keys()), sorted(device_map.keys() - sizes.keys())
    if missing or unknown:
        wrong = f"leaves out {', '.join(missing)}" if missing else f"names {', '.join(unknown)}, unknown here"
        raise InvalidRequestError(f"The device_map {wrong}.", "Leave device_map out to have one computed.")
    if not all(type(number) is int and number >= 0 for number in device_map.values()):
        raise InvalidRequestError("A device_map gives each part the number of a GPU: 0, 1, ...")


def _check_room(device_map: DeviceMap, sizes: Mapping[str, int], free: Sequence[int | None]) -> None:
    for number, room in enumerate(free):
        needed = sum(size for part, size in sizes.items() if device_map[part] == number)
        if room is not None and needed > USABLE * room:
            raise OutOfMemoryError(
                f"cuda:{number} would have to hold {format_bytes(needed)} of weights and has {format_bytes(room)}.",
                "Use more GPUs, free memory on them, or give quantize=8 or 4.",
            )
