"""The memory that caches may take, counted in blocks of positions.

Knows: how many blocks there are and who has reserved which number of them. Does not know tensors: a cache is made by
the network, of exactly the size that was reserved.

A request reserves all it may ever need before its first step, so no running request is ever stopped for want of memory:

    blocks_total = 8     [A A A|B B|. . .]      A and B run; C, which may need 4, waits until one of them ends
"""

from __future__ import annotations

from typing import Any

from chatglm.devices import available_memory
from chatglm.errors import InvalidRequestError
from chatglm.nn.pages import PAGE_TOKENS
from chatglm.sizes import format_bytes

# Where the cache has pages, a block is one.
BLOCK_TOKENS = PAGE_TOKENS
# Of the memory that is free when the engine is made; the rest is left to activations and other programs.
SHARE_OF_FREE = 0.6


class BlockPool:
    """A number of blocks; owners reserve some and release them once."""

    def __init__(self, num_blocks: int) -> None:
        self.total = num_blocks
        self._reserved: dict[Any, int] = {}

    @property
    def free(self) -> int:
        """Blocks that nobody has reserved."""
        return self.total - sum(self._reserved.values())

    def reserve(self, owner: Any, num_positions: int) -> bool:
        """Set blocks for so many positions aside; False, and nothing is changed, if there are too few."""
        assert owner not in self._reserved, "an owner reserves once"
        needed = blocks_for(num_positions)
        if needed > self.free:
            return False
        self._reserved[owner] = needed
        return True

    def release(self, owner: Any) -> None:
        """Give back what an owner reserved."""
        del self._reserved[owner]


def blocks_for(num_positions: int) -> int:
    """Blocks that hold so many positions."""
    return -(-num_positions // BLOCK_TOKENS)


def count_blocks(model: Any, memory_limit: int | None, max_running: int) -> int:
    """How many blocks a network's caches may take together.

    Args:
        model: tells `cache_positions` and `position_bytes`, see `runner.BatchModel`.
        memory_limit: bytes; None = a share of the memory that is free now, and always enough for one whole context.
        max_running: requests at once; more than their whole contexts is never needed.

    Raises:
        InvalidRequestError: the limit is below one block.
    """
    context = blocks_for(model.cache_positions(model.config.max_sequence_length))
    block_bytes = BLOCK_TOKENS * model.position_bytes
    most = context * max_running
    if memory_limit is not None:
        if memory_limit < block_bytes:
            raise InvalidRequestError(
                f"A memory limit of {format_bytes(memory_limit)} leaves no room for a single conversation.",
                f"Give at least {format_bytes(context * block_bytes)}, which is enough for one that fills the context.",
            )
        return min(most, memory_limit // block_bytes)
    free = available_memory(model.device)
    return most if free is None else min(most, max(context, int(free * SHARE_OF_FREE) // block_bytes))
