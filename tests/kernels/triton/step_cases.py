"""Inputs of a decode step whose unused memory is poisoned, and what its parts are in float64."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

PAGE = 64
LENGTHS = (1, 63, 64, 65, 300)
# Of a result of size 1, where everything before its own rounding is float32.
BOUNDS = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


class PagedCase:
    """Rows of given lengths in shuffled pages; whatever no row has stored is NaN.

    Page 0 and, behind its own, all pages of a row's table are such pages too.
    """

    def __init__(
        self,
        lengths: Sequence[int] = LENGTHS,
        heads: int = 3,
        width: int = 64,
        dtype: torch.dtype = torch.float32,
        *,
        spare: int = 2,
        size: float = 1.0,
        page: int = PAGE,
        device: torch.device | str = "cpu",
    ) -> None:
        counts = [-(-length // page) for length in lengths]
        num_pages = 1 + sum(counts) + len(lengths)
        own = iter((1 + torch.randperm(num_pages - 1)).tolist())
        table = torch.zeros(len(lengths), max(counts) + spare, dtype=torch.int32)
        stores = torch.full((2, num_pages, heads, page, width), torch.nan)
        self.rows = []
        for number, (length, count) in enumerate(zip(lengths, counts, strict=True)):
            table[number, :count] = torch.tensor([next(own) for _ in range(count)])
            row = torch.randn(2, heads, length, width).to(dtype).float()
            for index in range(count):
                part = row[:, :, index * page : (index + 1) * page]
                stores[:, table[number, index], :, : part.shape[2]] = part
            self.rows.append(row)
        self.query = (size * torch.randn(len(lengths), heads, width)).to(device, dtype)
        self.keys, self.values = stores.to(device, dtype)
        self.table, self.lengths = table.to(device), torch.tensor(lengths, dtype=torch.int32, device=device)

    def row(self, number: int) -> PagedCase:
        """One row alone, with a table no wider than it needs."""
        alone = object.__new__(PagedCase)
        chosen = slice(number, number + 1)
        width = -(-int(self.lengths[number]) // self.keys.shape[2])
        alone.rows, alone.query, alone.lengths = self.rows[chosen], self.query[chosen], self.lengths[chosen]
        alone.keys, alone.values, alone.table = self.keys, self.values, self.table[chosen, :width].contiguous()
        return alone

    def expected(self) -> Tensor:
        """Attention output in float64 [B, H, D], of what is stored."""
        mixed = [
            F.scaled_dot_product_attention(query[:, None].double().cpu(), *row.double())
            for query, row in zip(self.query, self.rows, strict=True)
        ]
        return torch.stack(mixed).squeeze(2)


class StoreCase(PagedCase):
    """The same and the new position of each row, which is not stored yet."""

    def __init__(
        self,
        lengths: Sequence[int] = LENGTHS,
        heads: int = 3,
        width: int = 64,
        dtype: torch.dtype = torch.float32,
        stored: torch.dtype | None = None,
        *,
        parts: int = 2,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(lengths, heads, width, stored or dtype, device=device)
        self.parts = parts
        self.qkv = torch.randn(len(lengths), 3 * heads * width).to(device, dtype)
        angles = 2000 * torch.rand(len(lengths), width)
        self.tables = angles.cos().to(device, dtype), angles.sin().to(device, dtype)
        for number, length in enumerate(lengths):
            for store in (self.keys, self.values):
                store[self.place(number, length - 1)] = torch.nan

    def place(self, number: int, position: int) -> tuple[int, slice, int]:
        """Where a position of a row lies in a store."""
        page_size = self.keys.shape[2]
        return int(self.table[number, position // page_size]), slice(None), position % page_size

    def heads(self) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values that are not rotated yet, [B, H, 1, D]."""
        query, key, value = self.qkv.view(len(self.qkv), -1, 1, 3 * self.keys.shape[3]).chunk(3, dim=-1)
        return query, key, value
