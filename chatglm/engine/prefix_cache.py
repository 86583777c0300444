"""Caches of ended requests, reused by prompts that begin with the same tokens; for networks that only look back.
Methods are called with the engine's lock held, but for `entry_of` and `KVCache.copy_from`, which take time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from chatglm.engine.block_manager import BlockManager
from chatglm.engine.request import Request, RequestDecoder
from chatglm.nn.kv_cache import KVCache

MAX_ENTRIES = 256  # all are compared with each new prompt
LEAST_TOKENS = 16  # fewer are as quickly read as copied


@dataclass(frozen=True, eq=False)
class Entry:
    """Tokens, int64 [n], and their cache, which holds no more than them and a trained prefix."""

    token_ids: Tensor
    cache: KVCache


class PrefixCache:
    """The entries; `BlockManager` bounds their memory and gives up the least recently used."""

    def __init__(self, decoder: RequestDecoder, blocks: BlockManager) -> None:
        self._decoder, self._blocks = decoder, blocks
        self._entries: dict[Entry, None] = {}

    def find(self, request: Request) -> tuple[Entry, int] | None:
        """The entry with the longest common beginning, and its tokens: at most all of the prompt but the last."""
        prompt = request.prompt[0, :-1]
        lengths = {
            entry: common_length(entry.token_ids, prompt)
            for entry in self._entries
            if entry.cache.uses_adapter == request.uses_adapter
        }
        best = max(lengths, key=lambda entry: lengths[entry], default=None)
        if best is None or lengths[best] < LEAST_TOKENS:
            return None
        self._touch(best)
        return best, lengths[best]

    def entry_of(self, request: Request) -> Entry | None:
        """What may be kept of a request, copied; None if it is too little, or the request failed."""
        cache = request.cache
        if not isinstance(cache, KVCache) or request.finish_reason == "error":
            return None
        num_tokens = cache.get_seq_length() - self._num_positions(0, cache)
        if num_tokens < LEAST_TOKENS:
            return None
        return Entry(torch.tensor(request.token_ids[:num_tokens]), cache.copy())

    def keep(self, entry: Entry) -> None:
        """Keep an entry in the place of those that it continues, if there is room beside what is running."""
        longer = next((other for other in self._entries if self._continues(other, entry)), None)
        if longer is not None:
            self._touch(longer)
            return
        for other in [other for other in self._entries if self._continues(entry, other)]:
            self._forget(other)
        if len(self._entries) == MAX_ENTRIES:
            self._forget(next(iter(self._entries)))
        num_positions = self._num_positions(len(entry.token_ids), entry.cache)
        if self._blocks.keep(entry, num_positions, lambda: self._entries.pop(entry)):
            self._entries[entry] = None

    def clear(self) -> None:
        for entry in list(self._entries):
            self._forget(entry)

    def _touch(self, entry: Entry) -> None:
        self._blocks.touch(entry)
        self._entries[entry] = self._entries.pop(entry)

    def _forget(self, entry: Entry) -> None:
        self._blocks.release(entry)
        del self._entries[entry]

    def _num_positions(self, num_tokens: int, cache: KVCache) -> int:
        return self._decoder.cache_positions(num_tokens, uses_adapter=cache.uses_adapter)

    @staticmethod
    def _continues(entry: Entry, other: Entry) -> bool:
        same = entry.cache.uses_adapter == other.cache.uses_adapter
        return same and common_length(entry.token_ids, other.token_ids) == len(other.token_ids)


def common_length(a: Tensor, b: Tensor) -> int:
    """How many tokens at the beginning of both are the same."""
    shorter = min(len(a), len(b))
    differing = (a[:shorter] != b[:shorter]).nonzero()
    return int(differing[0]) if len(differing) else shorter
