"""The keys and values of the positions already computed, owned by whoever runs the request.

Knows: storage that grows by doubling, so that appending token by token copies each position O(1) times.
Does not know what the positions mean. It answers the two calls that the network makes (`update`, `get_seq_length`)
with the same meaning as a transformers `Cache`, so either can be handed to the network.
Shapes: B rows, H heads, S positions, D head width.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

FIRST_CAPACITY = 64


class AnyCache(Protocol):
    """What the network asks of a cache: ours, or one of transformers'."""

    def get_seq_length(self, layer_idx: int = 0) -> Any: ...
    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, /) -> tuple[Tensor, Tensor]: ...


class KVCache:
    """Keys and values per layer, each [B, H, S, D] with S the number of positions stored."""

    def __init__(self, num_layers: int, capacity: int = FIRST_CAPACITY) -> None:
        """Args: num_layers: L. capacity: positions to reserve at first use."""
        self._capacity = capacity
        self._keys: list[Tensor | None] = [None] * num_layers
        self._values: list[Tensor | None] = [None] * num_layers
        self._lengths = [0] * num_layers

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions stored, a prefix encoder's included."""
        return self._lengths[layer_idx]

    def update(self, key_BHTD: Tensor, value_BHTD: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """Append T positions to a layer; returns all its keys and values as views [B, H, S, D]."""
        start = self._lengths[layer_idx]
        stop = start + key_BHTD.shape[2]
        keys = self._grown(self._keys[layer_idx], key_BHTD, start, stop)
        values = self._grown(self._values[layer_idx], value_BHTD, start, stop)
        keys[:, :, start:stop] = key_BHTD
        values[:, :, start:stop] = value_BHTD
        self._keys[layer_idx], self._values[layer_idx], self._lengths[layer_idx] = keys, values, stop
        return keys[:, :, :stop], values[:, :, :stop]

    def layer(self, layer_idx: int) -> tuple[Tensor, Tensor]:
        """The stored keys and values of a layer, views [B, H, S, D]; IndexError before the first update."""
        keys, values = self._keys[layer_idx], self._values[layer_idx]
        if keys is None or values is None:
            raise IndexError(f"layer {layer_idx} has stored nothing yet")
        return keys[:, :, : self._lengths[layer_idx]], values[:, :, : self._lengths[layer_idx]]

    @property
    def num_bytes(self) -> int:
        """Bytes held, reserved room included."""
        return sum(t.numel() * t.element_size() for t in (*self._keys, *self._values) if t is not None)

    def _grown(self, stored: Tensor | None, new_BHTD: Tensor, start: int, stop: int) -> Tensor:
        if stored is not None and stop <= stored.shape[2]:
            return stored
        rows, heads, _, width = new_BHTD.shape
        grown = new_BHTD.new_empty(rows, heads, max(stop, 2 * start, self._capacity), width)
        if stored is not None:
            grown[:, :, :start] = stored[:, :, :start]
        return grown


def concatenated(past: tuple[Tensor, Tensor], key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values [B, H, P, D] of a prefix in front of those of a call."""
    return torch.cat((past[0], key), dim=2), torch.cat((past[1], value), dim=2)
