"""Positions of a causal sequence: columns counted from the first real token; every token sees itself and all before.

Shapes: B rows, T positions of the sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from chatglm.nn.attention import CAUSAL, Causal


@dataclass(frozen=True)
class CausalLayout:
    """`num_pads` int64 [B, 1]: pads on the left. No columns see each other both ways."""

    num_pads: Tensor
    num_bidirectional: int = 0

    def positions(self, start: int, stop: int) -> Tensor:
        """Position ids of columns start..stop-1, int64 [B, stop - start]; 0 on pads."""
        return (torch.arange(start, stop, device=self.num_pads.device)[None] - self.num_pads).clamp(min=0)

    def answer_positions(self, column: int) -> list[int]:
        """The position of one column of the only row."""
        return [max(0, column - int(self.num_pads[0, 0]))]

    def visible(self, start: int, stop: int, key_mask: Tensor | None = None) -> Tensor | Causal:
        """Visibility bool [B, 1, stop - start, stop], True = visible; `key_mask` [B, stop], nonzero = a real token.

        Without pads it is `CAUSAL`, which takes no memory however many columns there are.
        """
        if not bool(self.num_pads.any()) and (key_mask is None or bool(key_mask.all())):
            return CAUSAL
        queries = torch.arange(start, stop, device=self.num_pads.device)[None, :, None]
        keys = torch.arange(stop, device=self.num_pads.device)[None, None, :]
        seen = (keys <= queries) & (keys >= self.num_pads[..., None])
        if key_mask is not None:
            seen = seen & key_mask[:, None, :stop].bool()
        # A pad sees itself: its output is never read, and a row that sees nothing would give NaN.
        return (seen | (keys == queries))[:, None]


def find_layout(input_ids: Tensor, config: Any, attention_mask: Tensor | None = None) -> CausalLayout:
    """The layout of full sequences [B, T]; `attention_mask` [B, T], 0 = pad, None = leading pad ids are padding."""
    is_pad = input_ids == config.pad_token_id if attention_mask is None else ~attention_mask.bool()
    return CausalLayout(is_pad.int().cumprod(dim=1).sum(dim=1, keepdim=True))
