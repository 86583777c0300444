"""Which requests run and which wait: first come, first served. Methods are called with the engine's lock held."""

from __future__ import annotations

from collections import deque

from chatglm.engine.block_manager import BLOCK_TOKENS, BlockManager, blocks_for
from chatglm.engine.request import Request
from chatglm.errors import InvalidRequestError, QueueFullError


class Scheduler:
    """A request is in `waiting`, in `running` (blocks reserved) or gone; it moves up as soon as it can run."""

    def __init__(self, blocks: BlockManager, max_running: int, max_waiting: int) -> None:
        """Raises InvalidRequestError if a bound is too low for any request to run."""
        if max_running < 1 or max_waiting < 0:
            raise InvalidRequestError(
                f"{max_running} running and {max_waiting} waiting requests are no bounds.",
                "Let at least 1 run and 0 wait.",
            )
        self.blocks = blocks
        self.max_running = max_running
        self.max_waiting = max_waiting
        self.running: dict[Request, None] = {}  # in order of admission
        self.waiting: deque[Request] = deque()

    @property
    def is_empty(self) -> bool:
        return not self.running and not self.waiting

    def add(self, request: Request) -> None:
        """Raises InvalidRequestError if it may need more blocks than there are, QueueFullError if it cannot wait."""
        if blocks_for(request.num_positions) > self.blocks.total:
            raise InvalidRequestError(
                f"Prompt and answer together may take {request.num_positions} tokens, but the memory for caches holds "
                f"{self.blocks.total * BLOCK_TOKENS}.",
                "Give a smaller max_length or max_new_tokens, or a higher memory limit.",
            )
        self.waiting.append(request)
        self._admit()
        if len(self.waiting) > self.max_waiting:
            self.waiting.remove(request)
            raise self._full()

    def require_room(self) -> None:
        """Raise QueueFullError if one more request could neither run nor wait."""
        if len(self.waiting) >= self.max_waiting and (self.waiting or len(self.running) >= self.max_running):
            raise self._full()

    def _full(self) -> QueueFullError:
        return QueueFullError(
            f"{len(self.running)} requests run and {self.max_waiting} wait; no more are taken.",
            "Try again in a moment.",
        )

    def remove(self, request: Request) -> None:
        """Let a request go that has ended, whether it ran or waited; those behind it move up."""
        if request in self.running:
            del self.running[request]
            self.blocks.release(request)
        else:
            self.waiting.remove(request)
        self._admit()

    def _admit(self) -> None:
        while self.waiting and len(self.running) < self.max_running:
            if not self.blocks.reserve(self.waiting[0], self.waiting[0].num_positions):
                return
            self.running[self.waiting.popleft()] = None
