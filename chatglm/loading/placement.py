"""Which part of a network lies on which GPU, when one is not enough.

Knows: parts (embedding, prefix encoder, layers, final norm, head), their sizes, shares. Layers stay in order; what
meets the ids and the scores lies on the first device, where requests come from. Does not know files, or how weights
are read. It makes room, not speed: devices work one after the other.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch

from chatglm.devices import available_memory, choose_device, format_bytes
from chatglm.errors import InvalidRequestError, OutOfMemoryError

LAYERS = "transformer.layers"
DeviceMap = dict[str, int]
# Of what is free: the rest is for caches, activations and the libraries' own needs.
USABLE = 0.9


@dataclass(frozen=True)
class Placement:
    """Where every part of a network lies.

    Attributes:
        device_map: part -> number of its device, all parts of the network.
        devices: the devices by number.
    """

    device_map: DeviceMap
    devices: tuple[torch.device, ...]

    def device_of(self, name: str) -> torch.device:
        """The device of the parameter or buffer `name`."""
        return self.devices[self.device_map[_part_of(name)]]


def place(sizes: Mapping[str, int], shares: Sequence[float]) -> DeviceMap:
    """Spread parts over devices in proportion to `shares`; every device gets something if there are layers enough.

    Args:
        sizes: bytes of each part, layers in their order.
        shares: of each device, positive; only their ratios count.
    """
    layers = [part for part in sizes if part.startswith(LAYERS)]
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


def part_sizes(network: Any, dtype: torch.dtype) -> dict[str, int]:
    """Bytes of each part of a network without memory, once its floating-point numbers are `dtype`; a table that serves
    as embedding and head counts once."""
    sizes: dict[str, int] = {}
    seen: set[int] = set()
    for name, parameter in network.named_parameters(remove_duplicate=False):
        width = dtype.itemsize if parameter.is_floating_point() else parameter.element_size()
        part = _part_of(name)
        sizes[part] = sizes.get(part, 0) + (0 if id(parameter) in seen else parameter.numel() * width)
        seen.add(id(parameter))
    return sizes


def plan_placement(
    network: Any, dtype: torch.dtype, num_devices: int, device_map: Mapping[str, Any] | None
) -> Placement:
    """Where the parts of `network` go.

    Args:
        network: without memory.
        dtype: of its floating-point numbers.
        num_devices: cuda:0, cuda:1, ... to be used if there is no map.
        device_map: part -> number, one's own choice.

    Raises:
        DeviceError: there are not so many GPUs here.
        InvalidRequestError: the map leaves parts out, names unknown ones or is no map of whole numbers.
        OutOfMemoryError: a part of the network does not fit where it would go; carries the numbers.
    """
    sizes = part_sizes(network, dtype)
    if device_map is not None:
        _check_map(device_map, sizes)
        num_devices = max(device_map.values()) + 1
    devices = tuple(choose_device(f"cuda:{number}") for number in range(num_devices))
    free = [available_memory(device) for device in devices]
    known = [size for size in free if size is not None]
    shares = [float(size) for size in known] if len(known) == len(free) else [1.0] * num_devices
    chosen = dict(device_map) if device_map is not None else place(sizes, shares)
    _check_room(chosen, sizes, free)
    return Placement(chosen, devices)


def apply_placement(network: Any, placement: Placement) -> None:
    """Let the network, whose parts lie where they belong, hand its activations from device to device."""
    from accelerate import dispatch_model

    named = {part: placement.devices[number] for part, number in placement.device_map.items()}
    dispatch_model(network, named, main_device=placement.devices[0], force_hooks=True)


def _part_of(name: str) -> str:
    """The part that a parameter belongs to: `transformer.layers.3.mlp.dense.weight` -> `transformer.layers.3`."""
    pieces = name.split(".")
    return ".".join(pieces[: 3 if name.startswith(f"{LAYERS}.") else 2 if pieces[0] == "transformer" else 1])


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
