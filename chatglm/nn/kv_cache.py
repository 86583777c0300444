"""The keys and values of the positions already computed, owned by whoever runs the request.

Storage grows by doubling, so that appending token by token copies each position O(1) times. It answers the two calls
that a network makes (`update`, `get_seq_length`) as a transformers `Cache` does, so either can be given to a network.
Shapes: B rows, H heads of keys and values, S positions, N positions there is room for, D head width.
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

    def __init__(
        self,
        num_layers: int,
        capacity: int = FIRST_CAPACITY,
        storage_dtype: torch.dtype | None = None,
        *,
        uses_adapter: bool = True,
    ) -> None:
        """An empty cache.

        Args:
            num_layers: L.
            capacity: positions to reserve at first use.
            storage_dtype: what to store; None = the type of what is given. What is given is always answered in its
                own type, and once rounded is never rounded again, so that a position looks the same in every call.
            uses_adapter: whether a trained prefix or LoRA update, where there is one, belongs to the conversation.
        """
        self.storage_dtype = storage_dtype
        self.uses_adapter = uses_adapter
        self._capacity = capacity
        self._reserved: Tensor | None = None
        self._keys: list[Tensor | None] = [None] * num_layers
        self._values: list[Tensor | None] = [None] * num_layers
        self._lengths = [0] * num_layers

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions stored, a prefix encoder's included."""
        return self._lengths[layer_idx]

    def update(self, key_BHTD: Tensor, value_BHTD: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """Append T positions to a layer; returns all its keys and values [B, H, S, D] in the type of those given.

        They are views of the storage where its type is the same.
        """
        self.append(key_BHTD, value_BHTD, layer_idx)
        keys, values = self.layer(layer_idx)
        return keys.to(key_BHTD.dtype), values.to(value_BHTD.dtype)

    def append(self, key_BHTD: Tensor, value_BHTD: Tensor, layer_idx: int) -> None:
        """Append T positions to a layer, for someone who reads its `storage`."""
        start = self._lengths[layer_idx]
        stop = start + key_BHTD.shape[2]
        if self._keys[layer_idx] is None:
            self._keys[layer_idx], self._values[layer_idx] = self._first_room(key_BHTD, layer_idx)
        self._keys[layer_idx] = self._appended(self._keys[layer_idx], key_BHTD, start, stop)
        self._values[layer_idx] = self._appended(self._values[layer_idx], value_BHTD, start, stop)
        self._lengths[layer_idx] = stop

    def storage(self, layer_idx: int) -> tuple[Tensor, Tensor, int]:
        """Keys and values [B, H, N, D] of a layer, contiguous, in the storage's type, and how many of the N are filled.

        Raises:
            IndexError: before the first update.
        """
        return *self._stored(layer_idx), self._lengths[layer_idx]

    def room_for_one(self, layer_idx: int) -> tuple[Tensor, Tensor, int]:
        """Storage of a layer for someone who appends a position himself and then calls `append_one`.

        Returns:
            As `storage`, with fewer than N filled.

        Raises:
            IndexError: before the first update, when shapes are not known.
        """
        start = self._lengths[layer_idx]
        stored_keys, stored_values = self._stored(layer_idx)
        keys, values = (self._grown(stored, stored, start, start + 1) for stored in (stored_keys, stored_values))
        self._keys[layer_idx], self._values[layer_idx] = keys, values
        return keys, values, start

    def append_one(self, layer_idx: int) -> None:
        """Count the position that was written into `room_for_one`."""
        self._lengths[layer_idx] += 1

    def layer(self, layer_idx: int) -> tuple[Tensor, Tensor]:
        """The stored keys and values of a layer, views [B, H, S, D]; IndexError before the first update."""
        keys, values = self._stored(layer_idx)
        return keys[:, :, : self._lengths[layer_idx]], values[:, :, : self._lengths[layer_idx]]

    @property
    def num_bytes(self) -> int:
        """Bytes held, reserved room included."""
        return sum(t.numel() * t.element_size() for t in (*self._keys, *self._values) if t is not None)

    def _stored(self, layer_idx: int) -> tuple[Tensor, Tensor]:
        keys, values = self._keys[layer_idx], self._values[layer_idx]
        if keys is None or values is None:
            raise IndexError(f"layer {layer_idx} has stored nothing yet")
        return keys, values

    def _appended(self, stored: Tensor | None, new_BHTD: Tensor, start: int, stop: int) -> Tensor:
        grown = self._grown(stored, new_BHTD, start, stop)
        grown[:, :, start:stop] = new_BHTD
        return grown

    def _first_room(self, like_BHTD: Tensor, layer_idx: int) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """Storage for the keys and values of a layer that has none, or None where each layer does well to take its own.

        On a CPU all layers take theirs at once: one by one, between what a prompt computes, they would leave the heap
        with holes that nothing fits into (hundreds of MB with a prompt of 2000 tokens of ChatGLM-6B).
        """
        rows, heads, num_tokens, width = like_BHTD.shape
        shape = rows, heads, max(num_tokens, self._capacity), width
        if like_BHTD.is_cpu and not any(self._lengths):
            self._reserved = like_BHTD.new_empty(len(self._keys), 2, *shape, dtype=self.storage_dtype)
        if not like_BHTD.is_cpu or self._reserved is None or self._reserved.shape[2:] != shape:
            return None, None
        # `data`: to autograd a layer's storage is a tensor of its own, not a view of one that other layers write to.
        return self._reserved[layer_idx, 0].data, self._reserved[layer_idx, 1].data

    def _grown(self, stored: Tensor | None, like_BHTD: Tensor, start: int, stop: int) -> Tensor:
        """Storage with room for `stop` positions that holds the first `start` of `stored`."""
        if stored is not None and stop <= stored.shape[2]:
            return stored
        rows, heads, _, width = like_BHTD.shape
        room = max(stop, 2 * start, self._capacity)
        grown = like_BHTD.new_empty(rows, heads, room, width, dtype=self.storage_dtype)
        if stored is not None:
            grown[:, :, :start] = stored[:, :, :start]
            self._reserved = None  # free it when all layers have left it
        return grown


def concatenated(past: tuple[Tensor, Tensor], key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values [B, H, P, D] of a prefix in front of those of a call."""
    return torch.cat((past[0], key), dim=2), torch.cat((past[1], value), dim=2)
