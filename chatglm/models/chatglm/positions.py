"""Positions and visibility of a row; `a b c [gMASK] <sop> x y` has s = 4 ids of context before `<sop>`, and g = 3:

    id              a  b  c  [gMASK]  <sop>  x  y            keys:   a b c g | <sop> x y
    position        0  1  2     3       3    3  3          a b c g   1 1 1 1 |   0   0 0
    block position  0  0  0     0       1    2  3          <sop>     1 1 1 1 |   1   0 0
                                                           x         1 1 1 1 |   1   1 0
    Counting starts after pads; no token sees them.        y         1 1 1 1 |   1   1 1

Unlike upstream, so that a row in a batch equals the row alone: pads are found even without a mask; [gMASK] wins over
[MASK]; only the context is searched for it; with one position row a cached step counts on as the full pass does.
Shapes: B rows, T positions of the sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from chatglm.errors import InvalidRequestError


@dataclass(frozen=True)
class Layout:
    """Columns int64 [B, 1]: `sop` of the first `<sop>`, `mask` of the mask token that later positions repeat.
    `running` bool [B, 1]: one-row positions count on after `<sop>` ([gMASK] prompts). `is_2d`: two position rows.
    """

    num_pads: Tensor
    sop: Tensor
    mask: Tensor
    running: Tensor
    is_2d: bool

    def positions(self, start: int, stop: int) -> Tensor:
        """Position ids of columns start..stop-1: int64 [B, 2, stop - start], or [B, stop - start] with one row."""
        return self.positions_at(torch.arange(start, stop, device=self.sop.device)[None])

    def positions_at(self, columns: Tensor) -> Tensor:
        """Position ids of columns [B or 1, T] of each row: int64 [B, 2, T], or [B, T] with one position row."""
        counted = (columns - self.num_pads).clamp(min=0)
        repeated = torch.where(columns < self.sop, counted, self.mask - self.num_pads)
        if not self.is_2d:
            return torch.where(self.running, counted, repeated)
        return torch.stack((repeated, (columns - self.sop + 1).clamp(min=0)), dim=1)

    @cached_property
    def num_bidirectional(self) -> int:
        """Columns at the start of the only row that all see each other: the context."""
        return int(self.sop[0])

    def answer_positions(self, column: int) -> list[int]:
        """Positions of a column behind `<sop>` in the only row: one number for each position row."""
        first, growth = self._answer
        return [start + step * (column - self.num_bidirectional) for start, step in zip(first, growth, strict=True)]

    @cached_property
    def _answer(self) -> tuple[list[int], list[int]]:
        """Positions of `<sop>`, and by what each grows from column to column."""
        columns = torch.tensor([[0, 1]], device=self.sop.device) + self.sop
        first, second = self.positions_at(columns).view(-1, 2).unbind(1)
        return first.tolist(), (second - first).tolist()

    def visible(self, start: int, stop: int, key_mask: Tensor | None = None) -> Tensor:
        """Visibility bool [B, 1, stop - start, stop], True = visible; `key_mask` [B, stop], nonzero = a real token."""
        queries = torch.arange(start, stop, device=self.sop.device)[None, :, None]
        keys = torch.arange(stop, device=self.sop.device)[None, None, :]
        seen = ((keys < self.sop[:, None]) | (keys <= queries)) & (keys >= self.num_pads[:, None])
        if key_mask is not None:
            seen = seen & key_mask[:, None, :stop].bool()
        # A pad sees itself: its output is never read, and a row that sees nothing would give NaN.
        return (seen | (keys == queries))[:, None]


def find_layout(input_ids: Tensor, config: Any, attention_mask: Tensor | None = None) -> Layout:
    """The layout of full sequences, int64 [B, T]; `attention_mask` [B, T], 0 = pad, None = leading pad ids are padding.
    Raises InvalidRequestError if a row has no `<sop>`, or neither [gMASK] nor [MASK] before it.
    """
    real = input_ids != config.pad_token_id if attention_mask is None else attention_mask.bool()
    is_sop = input_ids == config.bos_token_id
    sop = first_column(is_sop)
    in_context = torch.arange(input_ids.shape[1], device=input_ids.device)[None] < sop
    is_gmask = (input_ids == config.gmask_token_id) & in_context
    is_mask = (input_ids == config.mask_token_id) & in_context
    has_gmask = is_gmask.any(dim=1, keepdim=True)
    if not bool(is_sop.any(dim=1).all()):
        raise InvalidRequestError(
            "A row of input_ids has no <sop> token.",
            "Make input_ids with the ChatGLM tokenizer, special tokens included.",
        )
    if not bool((is_gmask | is_mask).any(dim=1).all()):
        raise InvalidRequestError("A row of input_ids has neither [gMASK] nor [MASK] before <sop>.")
    mask = torch.where(has_gmask, first_column(is_gmask), first_column(is_mask))
    return Layout(first_column(real), sop, mask, has_gmask, config.position_encoding_2d)


def first_column(flags: Tensor) -> Tensor:
    """Index of the first True of each row, [B, 1]; 0 for a row without one."""
    return flags.int().argmax(dim=1, keepdim=True)
