"""What an engine has done and has room for, as plain numbers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stats:
    """A moment of an engine; totals and outcomes count since it was made.

    `running` hold a slot, `waiting` nothing yet. `finished` ended with "stop" or "length", `cancelled` by their caller
    or a closed engine, `expired` by their deadline, `failed` with an error; `refused` met a full queue. `tokens_total`
    has no end tokens; `steps_total` are decode steps of all requests. `cached_tokens_total` of the prompts' tokens were
    known from another request: `prefix_hits` requests began so, `prefix_misses` did not. Blocks have `block_tokens`
    cache positions; those kept for reuse are free.
    """

    running: int
    waiting: int
    finished: int
    cancelled: int
    expired: int
    failed: int
    refused: int
    prompt_tokens_total: int
    cached_tokens_total: int
    prefix_hits: int
    prefix_misses: int
    tokens_total: int
    steps_total: int
    slots_used: int
    slots_total: int
    blocks_free: int
    blocks_total: int
    block_tokens: int
