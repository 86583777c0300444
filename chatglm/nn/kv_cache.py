"""The KV cache of a request. It doubles as it grows; a transformers `Cache` can be given to a network in its place.

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
        """An empty cache for L layers, which reserves `capacity` positions at first use.

        `storage_dtype`: None = the type of what is given. Results have the given type; a rounded value is not rounded
        again, so a position is the same in every call. `uses_adapter`: whether a trained prefix or LoRA update applies.
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
        """Append T positions to a layer; all its keys and values [B, H, S, D] in the given type, views if stored so."""
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
        """A layer's keys and values [B, H, N, D] as stored, contiguous, and how many of the N are filled.

        Raises IndexError before the first update.
        """
        return *self._stored(layer_idx), self._lengths[layer_idx]

    def room_for_one(self, layer_idx: int) -> tuple[Tensor, Tensor, int]:
        """As `storage`, with fewer than N filled: the caller appends a position and then calls `append_one`."""
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

    def copy_from(self, other: KVCache, num_positions: int) -> None:
        """Begin with the first positions of another cache."""
        for layer_idx in range(len(self._keys)):
            keys, values = other.layer(layer_idx)
            self.append(keys[:, :, :num_positions], values[:, :, :num_positions], layer_idx)

    def copy(self) -> KVCache:
        """A cache of the same positions, with room for no more."""
        length = self.get_seq_length()
        copied = KVCache(len(self._keys), length, self.storage_dtype, uses_adapter=self.uses_adapter)
        copied.copy_from(self, length)
        return copied

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
        """Storage for an empty layer, or None if it takes its own. On a CPU all layers take theirs at once.

        One by one, they would leave holes in the heap (hundreds of MB with a prompt of 2000 tokens of ChatGLM-6B).
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
        if stored is not None and stop <= stored.shape[2]:
            return stored
        rows, heads, _, width = like_BHTD.shape
        room = max(stop, 2 * start, self._capacity)
        grown = like_BHTD.new_empty(rows, heads, room, width, dtype=self.storage_dtype)
        if stored is not None:
            grown[:, :, :start] = stored[:, :, :start]
            self._reserved = None  # free it when all layers have left it
        return grown


def uses_adapter(cache: Any) -> bool:
    """Whether prefix or LoRA belong to the conversation of a cache; transformers' own caches say nothing of it."""
    return not isinstance(cache, KVCache) or cache.uses_adapter


def concatenated(past: tuple[Tensor, Tensor], key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values [B, H, P, D] of a prefix in front of those of a call."""
    return torch.cat((past[0], key), dim=2), torch.cat((past[1], value), dim=2)
