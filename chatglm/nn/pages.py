"""Keys and values of many requests in one store of equal pages; each request has pages of its own.

    table of a request   [7 2 9]       its position 70 lies in page 2 at place 6
    page 0               padding rows write there

A store never grows or moves, so a captured graph of a step may keep its addresses.
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
    """Keys and values of all requests, and what a step rotary_tables new keys by.

    Attributes:
        keys: of each layer, [N, H, P, D].
        values: the same.
        rotary_tables: for every position that a request can have; see `nn.rotary.tables_to`. Made with the store,
            because a captured graph keeps their address.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    rotary_tables: Tensor

    @classmethod
    def empty(
        cls, num_layers: int, num_pages: int, num_heads: int, width: int, rotary_tables: Tensor, dtype: torch.dtype
    ) -> Pages:
        """Room for `num_pages` pages and the one of nobody, where the tables lie.

        It is filled with zeros: what nobody has written may be read, and must be finite.
        """
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
    """A prompt that is about to be taken in.

    Attributes:
        table: pages of the request, int32 [M], on the CPU.
        length: positions of the prompt in the call.
        num_before: positions that its pages hold already: those of a trained prefix.
    """

    table: Tensor
    length: int
    num_before: int = 0


@dataclass(frozen=True)
class _Run:
    """Prompts of a kind that lie behind one another, in the columns start..stop-1 of the call."""

    start: int
    stop: int
    num_prompts: int
    has_prefix: bool

    def of(self, part_HTD: Tensor) -> Tensor:
        """Their queries, keys or values, a view [G, H, n, D] of those of the call."""
        return part_HTD[:, self.start : self.stop].unflatten(1, (self.num_prompts, -1)).transpose(0, 1)


class PagedPrompts(Packed):
    """Prompts, each of which sees all of itself and the prefix before it; equal neighbours attend in one call.

    Nothing is gathered or put back: a run of prompts is a view of the call, and so is its result.
    """

    def __init__(self, pages: Pages, prompts: Sequence[PagedPrompt], prefix: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Work out where everything lies, once for all layers.

        Args:
            pages: where keys and values go.
            prompts: in the order of the call; those of the same length, best side by side.
            prefix: keys and values [1, H, P, D] of each layer that prompts with positions before them see.
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
