"""Several requests in one call of a network: their positions are concatenated in a single row.

    requests a, b, c of 3, 1, 2 positions: row [a a a b c c]; attention of a with cache A, b with B, c with C

Positions behind those of the last request are padding: computed, stored nowhere, attending to nothing.
Shapes: T positions of the call, H query heads, G key and value heads, S positions of one cache, D head width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from chatglm.nn.attention import attend, causal_mask
from chatglm.nn.kv_cache import KVCache


class Packed(ABC):
    """What a network is given in the place of one request's cache."""

    def __init__(self, caches: Sequence[KVCache]) -> None:
        self.caches = caches

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions the first request has stored; 0 for all or for none of them."""
        return self.caches[0].get_seq_length(layer_idx)

    @abstractmethod
    def attend(self, query_1HTD: Tensor, key_1GTD: Tensor, value_1GTD: Tensor, layer_idx: int) -> Tensor:
        """Store the keys and values of the call, each with its request; returns the attention output [1, H, T, D]."""


class PackedPrompts(Packed):
    """Prompts, each of which sees all of what its cache holds, and of itself all or (`causal`) what is before."""

    def __init__(self, caches: Sequence[KVCache], lengths: Sequence[int], *, causal: bool = False) -> None:
        super().__init__(caches)
        self.lengths, self.causal = lengths, causal

    def attend(self, query_1HTD: Tensor, key_1GTD: Tensor, value_1GTD: Tensor, layer_idx: int) -> Tensor:
        mixed = torch.zeros_like(query_1HTD)
        stop = 0
        for cache, length in zip(self.caches, self.lengths, strict=True):
            start, stop = stop, stop + length
            keys, values = cache.update(key_1GTD[:, :, start:stop], value_1GTD[:, :, start:stop], layer_idx)
            visible = causal_mask(length, keys.shape[2], keys.device) if self.causal and length > 1 else None
            mixed[:, :, start:stop] = attend(query_1HTD[:, :, start:stop], keys, values, visible)
        return mixed


class PackedSteps(Packed):
    """One new position of each request, in caches that are not empty; a call counts as stored only from `commit` on."""

    def attend(self, query_1HTD: Tensor, key_1GTD: Tensor, value_1GTD: Tensor, layer_idx: int) -> Tensor:
        mixed = torch.zeros_like(query_1HTD)
        for number, cache in enumerate(self.caches):
            keys, values, length = cache.room_for_one(layer_idx)
            keys[:, :, length], values[:, :, length] = key_1GTD[:, :, number], value_1GTD[:, :, number]
            seen = slice(0, length + 1)
            mixed[:, :, number : number + 1] = attend(
                query_1HTD[:, :, number : number + 1],
                keys[:, :, seen].to(query_1HTD.dtype),
                values[:, :, seen].to(query_1HTD.dtype),
                None,
            )
        return mixed

    def commit(self, num_layers: int) -> None:
        for cache in self.caches:
            for layer_idx in range(num_layers):
                cache.append_one(layer_idx)
