"""What an engine has done and has room for, as plain numbers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stats:
    """A moment of an engine.

    Attributes:
        running: requests that hold a slot.
        waiting: requests admitted to the queue that hold nothing yet.
        finished: ended with "stop" or "length" since the engine was made.
        cancelled: ended by their caller, or because the engine closed.
        expired: ended by their deadline.
        failed: ended with an error.
        refused: not taken because the queue was full.
        prompt_tokens_total: ids of prompts that have gone through the network.
        tokens_total: ids made for answers, end tokens not counted.
        steps_total: decode steps of the network, however many requests took part.
        slots_used: requests that may run at once, taken.
        slots_total: and in all.
        blocks_free: blocks of cache positions that no running request has reserved.
        blocks_total: and in all.
        block_tokens: cache positions of a block.
    """

    running: int
    waiting: int
    finished: int
    cancelled: int
    expired: int
    failed: int
    refused: int
    prompt_tokens_total: int
    tokens_total: int
    steps_total: int
    slots_used: int
    slots_total: int
    blocks_free: int
    blocks_total: int
    block_tokens: int
