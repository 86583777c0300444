"""KV cache memory in blocks of positions; a request reserves all it may need, so it never stops for lack of memory."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from chatglm.devices import available_memory
from chatglm.errors import InvalidRequestError
from chatglm.nn.pages import PAGE_TOKENS
from chatglm.sizes import format_bytes

BLOCK_TOKENS = PAGE_TOKENS
# Of the memory that is free when the engine is made; the rest is left to activations and other programs.
SHARE_OF_FREE = 0.6


class BlockManager:
    """Blocks 1..total (0 is for padding rows of a paged cache); owners reserve some and release them, each once.

    What is kept for later reuse counts as free: it is given up, least recently used first, where blocks are needed.
    """

    def __init__(self, num_blocks: int) -> None:
        self.total = num_blocks
        self._free = list(range(num_blocks, 0, -1))
        self._owned: dict[Hashable, list[int]] = {}
        self._kept: dict[Hashable, Callable[[], None]] = {}

    @property
    def free(self) -> int:
        return len(self._free) + sum(len(self._owned[owner]) for owner in self._kept)

    def reserve(self, owner: Hashable, num_positions: int) -> bool:
        """Set blocks for so many positions aside; False, and nothing is changed, if there are too few."""
        assert owner not in self._owned, "an owner reserves once"
        needed = blocks_for(num_positions)
        if needed > self.free:
            return False
        while needed > len(self._free):
            self._give_up(next(iter(self._kept)))
        self._owned[owner] = [self._free.pop() for _ in range(needed)]
        return True

    def keep(self, owner: Hashable, num_positions: int, forget: Callable[[], None]) -> bool:
        """Reserve blocks that may be taken back: `forget` is called then. False if there are too few."""
        if not self.reserve(owner, num_positions):
            return False
        self._kept[owner] = forget
        return True

    def touch(self, owner: Hashable) -> None:
        """What an owner keeps has been used just now."""
        self._kept[owner] = self._kept.pop(owner)

    def blocks_of(self, owner: Hashable) -> list[int]:
        """The numbers of an owner's blocks, in the order of its positions."""
        return self._owned[owner]

    def release(self, owner: Hashable) -> None:
        self._kept.pop(owner, None)
        self._free += reversed(self._owned.pop(owner))

    def _give_up(self, owner: Hashable) -> None:
        forget = self._kept[owner]
        self.release(owner)
        forget()


def blocks_for(num_positions: int) -> int:
    """Blocks that hold so many positions."""
    return -(-num_positions // BLOCK_TOKENS)


def count_blocks(decoder: Any, memory_limit: int | None, max_running: int) -> int:
    """Blocks that the caches of a `BatchDecoder` may take together, at most `max_running` whole contexts.

    `memory_limit`: bytes, None = a share of what is free, at least one context. InvalidRequestError below one block.
    """
    context = blocks_for(decoder.cache_positions(decoder.spec.context_limit))
    block_bytes = BLOCK_TOKENS * decoder.position_bytes
    most = context * max_running
    if memory_limit is not None:
        if memory_limit < block_bytes:
            raise InvalidRequestError(
                f"A memory limit of {format_bytes(memory_limit)} leaves no room for a single conversation.",
                f"Give at least {format_bytes(context * block_bytes)}, which is enough for one that fills the context.",
            )
        return min(most, memory_limit // block_bytes)
    free = available_memory(decoder.device)
    return most if free is None else min(most, max(context, int(free * SHARE_OF_FREE) // block_bytes))
