"""Positions of a Glimmer sequence: columns counted from the first token that is not padding; everything is causal."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tests.families.glimmer.config import GlimmerNetworkConfig


@dataclass(frozen=True)
class GlimmerLayout:
    """Where things lie in each row.

    Attributes:
        num_pads: pads on the left, int64 [B, 1].
        num_bidirectional: columns at the start that see each other: none.
    """

    num_pads: Tensor
    num_bidirectional: int = 0

    def positions_at(self, columns: Tensor) -> Tensor:
        """Position ids [B, T] of columns [B or 1, T]."""
        return (columns - self.num_pads).clamp(min=0)

    def positions(self, start: int, stop: int) -> Tensor:
        """Position ids [B, T] of columns start..stop-1."""
        return self.positions_at(torch.arange(start, stop, device=self.num_pads.device)[None])

    def answer_positions(self, column: int) -> list[int]:
        """The position id of one column of a single row."""
        return [max(0, column - int(self.num_pads[0, 0]))]

    def visible(self, start: int, stop: int) -> Tensor:
        """Who may be seen by columns start..stop-1: bool [B, 1, stop - start, stop]; a pad sees itself."""
        queries = torch.arange(start, stop, device=self.num_pads.device)[:, None]
        keys = torch.arange(stop, device=self.num_pads.device)[None]
        return ((keys <= queries) & ((keys >= self.num_pads[..., None]) | (keys == queries)))[:, None]


def find_layout(input_ids: Tensor, config: GlimmerNetworkConfig) -> GlimmerLayout:
    """The layout of full sequences [B, T]; a leading run of pad ids is padding."""
    return GlimmerLayout((input_ids == config.pad_token_id).int().cumprod(dim=1).sum(dim=1, keepdim=True))
