"""Paged keys and values: one store of equal pages, which never grows or moves, so graphs may keep its addresses.

    page table of a request   [7 2 9]: its position 70 is in page 2 at slot 6; padding rows write to page 0

Shapes: N pages, P positions of a page, H heads, D head width, T positions of the call, G requests of a run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from chatglm.nn.attention import attend
from chatglm.nn.packed import Packed
from chatglm.nn.transfer import to_device

PAGE_TOKENS = 64


@dataclass(frozen=True)
class Pages:
    """Keys and values of all requests, [N, H, P, D] for each layer, and the tables that rotate new keys.

    `rotary_tables` (of `nn.rotary.tables_to`) cover every position of a request; a captured graph keeps their address.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    rotary_tables: Tensor

    @classmethod
    def empty(
        cls, num_layers: int, num_pages: int, num_heads: int, width: int, rotary_tables: Tensor, dtype: torch.dtype
    ) -> Pages:
        """Room for `num_pages` pages and the padding page, where the tables lie; zeros, as all may be read."""
        shape = (num_pages + 1, num_heads, PAGE_TOKENS, width)
        layers = range(2 * num_layers)
        stores = tuple(torch.zeros(shape, dtype=dtype, device=rotary_tables.device) for _ in layers)
        return cls(stores[:num_layers], stores[num_layers:], rotary_tables)

    def store(self, key_HTD: Tensor, value_HTD: Tensor, layer_idx: int, page_T: Tensor, place_T: Tensor) -> None:
        """Write T positions to their places [T], or to T places of each of several requests [G, T]; see `places`."""
        for store, new_HTD in ((self.keys[layer_idx], key_HTD), (self.values[layer_idx], value_HTD)):
            store[page_T, :, place_T] = new_HTD.transpose(0, 1).to(store.dtype)


def places(table_M: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor]:
    """Page and place in it, int64 [T] each, of the positions start..stop-1 of the request with that table."""
    positions = torch.arange(start, stop, device=table_M.device)
    return table_M[positions // PAGE_TOKENS].long(), positions % PAGE_TOKENS


@dataclass(frozen=True)
class PagedPrompt:
    """A prompt to process: its `table` of pages (int32 [M], on the CPU) and `length`, its positions in the call.

    `num_before` positions, those of a trained prefix, are in its pages already.
    """

    table: Tensor
    length: int
    num_before: int = 0


@dataclass(frozen=True)
class _Run:
    """Neighbouring prompts of one length, all with or all without prefix, in the columns start..stop-1 of the call."""

    start: int
    stop: int
    num_prompts: int
    has_prefix: bool

    def of(self, part_HTD: Tensor) -> Tensor:
        """Their queries, keys or values, a view [G, H, n, D] of those of the call."""
        return part_HTD[:, self.start : self.stop].unflatten(1, (self.num_prompts, -1)).transpose(0, 1)


class PagedPrompts(Packed):
    """Prompts that see themselves and the prefix before them; equal neighbours attend in one call, as views of it."""

    def __init__(self, pages: Pages, prompts: Sequence[PagedPrompt], prefix: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Find pages and runs once for all layers; prompts of the same length are best side by side.

        `prefix`: keys and values [1, H, P, D] of each layer, for prompts with positions before them.
        """
        super().__init__(())
        self._pages, self._prefix = pages, prefix
        device = pages.keys[0].device
        where = [places(one.table, one.num_before, one.num_before + one.length) for one in prompts]
        self._page_T, self._place_T = (to_device(torch.cat(parts), device) for parts in zip(*where, strict=True))
        self._runs = list(_runs(prompts))

    def attend(self, query_1HTD: Tensor, key_1HTD: Tensor, value_1HTD: Tensor, layer_idx: int) -> Tensor:
        query_HTD, key_HTD, value_HTD = query_1HTD[0], key_1HTD[0], value_1HTD[0]
        num_used = len(self._page_T)
        self._pages.store(key_HTD[:, :num_used], value_HTD[:, :num_used], layer_idx, self._page_T, self._place_T)
        parts = [self._attend(run, query_HTD, key_HTD, value_HTD, layer_idx) for run in self._runs]
        num_heads, num_positions, width = query_HTD.shape
        if num_positions > num_used:
            parts.append(query_HTD.new_zeros(num_positions - num_used, num_heads, width))
        mixed_THD = parts[0] if len(parts) == 1 else torch.cat(parts)
        return mixed_THD.transpose(0, 1)[None]

    def _attend(self, run: _Run, query_HTD: Tensor, key_HTD: Tensor, value_HTD: Tensor, layer_idx: int) -> Tensor:
        """Attention output of a run's positions, [G * n, H, D]."""
        query, key, value = (run.of(part) for part in (query_HTD, key_HTD, value_HTD))
        if run.has_prefix:
            before = (part.expand(run.num_prompts, -1, -1, -1) for part in self._prefix[layer_idx])
            key, value = (torch.cat(pair, dim=2) for pair in zip(before, (key, value), strict=True))
        return attend(query, key, value, None).transpose(1, 2).flatten(0, 1)


def _runs(prompts: Sequence[PagedPrompt]) -> Iterator[_Run]:
    stop = 0
    for (length, has_prefix), same in groupby(prompts, lambda prompt: (prompt.length, prompt.num_before > 0)):
        num_prompts = len(list(same))
        start, stop = stop, stop + num_prompts * length
        yield _Run(start, stop, num_prompts, has_prefix)
