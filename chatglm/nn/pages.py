"""Keys and values of many requests in one store of equal pages; each request has pages of its own.

Knows: how much a page holds, where a position of a request lies, prompts packed into one call. Does not know who owns
which page (engine/page_table.py), or how a step reads them (quantization/kernels/gpu).

    table of a request   [7 2 9]       its position 70 lies in page 2 at place 6
    page 0               belongs to nobody: rows that only fill up a batch write there

A store never grows or moves, so a captured graph of a step may keep its addresses.
Shapes: N pages, P positions of a page, H heads, D head width, T positions of the call, G requests of a group.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from chatglm.nn.attention import attend
from chatglm.nn.packed import Packed

PAGE_TOKENS = 64
# The page of the rows that belong to nobody.
NOBODY = 0


@dataclass(frozen=True)
class Pages:
    """Keys and values of each layer, each [N, H, P, D]."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    @classmethod
    def empty(cls, num_layers: int, num_pages: int, num_heads: int, width: int, like: Tensor) -> Pages:
        """Room for `num_pages` pages and the one of nobody, in the type and on the device of `like`.

        It is filled with zeros: what nobody has written may be read, and must be finite.
        """
        shape = (num_pages + 1, num_heads, PAGE_TOKENS, width)
        layers = range(2 * num_layers)
        stores = tuple(torch.zeros(shape, dtype=like.dtype, device=like.device) for _ in layers)
        return cls(stores[:num_layers], stores[num_layers:])

    def store(self, key_HTD: Tensor, value_HTD: Tensor, layer_idx: int, page_T: Tensor, place_T: Tensor) -> None:
        """Write T positions to their places; see `places`."""
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


class PagedPrompts(Packed):
    """Prompts, each of which sees all of itself and the prefix before it; prompts of a kind attend in one call."""

    def __init__(self, pages: Pages, prompts: Sequence[PagedPrompt], prefix: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Work out where everything lies, once for all layers.

        Args:
            pages: where keys and values go.
            prompts: in the order of the call.
            prefix: keys and values [1, H, P, D] of each layer that prompts with positions before them see.
        """
        super().__init__(())
        self._pages, self._prefix = pages, prefix
        device = pages.keys[0].device
        where = [places(one.table, one.num_before, one.num_before + one.length) for one in prompts]
        self._page_T, self._place_T = (torch.cat(parts).to(device) for parts in zip(*where, strict=True))
        self._groups = [(columns.to(device), has_prefix) for columns, has_prefix in _groups(prompts)]

    def attend(self, query_1HTD: Tensor, key_1HTD: Tensor, value_1HTD: Tensor, layer_idx: int) -> Tensor:
        used = slice(0, len(self._page_T))
        self._pages.store(key_1HTD[0, :, used], value_1HTD[0, :, used], layer_idx, self._page_T, self._place_T)
        mixed = torch.zeros_like(query_1HTD)
        for columns_Gn, has_prefix in self._groups:
            query, key, value = (part[0][:, columns_Gn].transpose(0, 1) for part in (query_1HTD, key_1HTD, value_1HTD))
            if has_prefix:
                before = (part.expand(len(columns_Gn), -1, -1, -1) for part in self._prefix[layer_idx])
                key, value = (torch.cat(pair, dim=2) for pair in zip(before, (key, value), strict=True))
            mixed[0][:, columns_Gn] = attend(query, key, value, None).transpose(0, 1)
        return mixed


def _groups(prompts: Sequence[PagedPrompt]) -> Iterator[tuple[Tensor, bool]]:
    """Columns [G, n] in the call of the prompts that have n positions, and whether a prefix is before them."""
    starts: dict[tuple[int, bool], list[int]] = {}
    start = 0
    for prompt in prompts:
        starts.setdefault((prompt.length, prompt.num_before > 0), []).append(start)
        start += prompt.length
    for (length, has_prefix), firsts in starts.items():
        yield torch.tensor(firsts)[:, None] + torch.arange(length), has_prefix
