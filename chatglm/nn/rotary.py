"""Rotary position embedding, in two forms.

ChatGLM-6B: with two position rows, each half of a head is rotated by its own row. Inside each part, width R, element i
is paired with element i + R/2 (`rotate`).

    two rows: first D/2 by position, last D/2 by block position; one row: all of D by position

ChatGLM2-6B and later: the first half of a head is rotated, in pairs of neighbours; the other half passes
(`rotate_pairs`).
Shapes: B rows, T positions, H heads, D head width, R rotated width, N positions of a table, P position rows (2 or 1).
"""

from __future__ import annotations

import torch
from torch import Tensor

ROTARY_BASE = 10000.0


def inverse_frequencies(width: int, device: torch.device | None = None) -> Tensor:
    """`base^(-2i/width)` for i < width/2, float32 [width/2], rounded through half precision.

    Upstream rounds them, and published weights were trained so; without it logits move by about 5e-4.
    """
    exponents = torch.arange(0, width, 2, dtype=torch.float32, device=device) / width
    return (1.0 / ROTARY_BASE**exponents).half().float()


def rotary_tables(positions_BT: Tensor, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin, each [B, 1, T, width], for one part of the head, in float32 and rounded once at the end.

    In bfloat16 upstream rounds the positions themselves, which merges neighbours above 256.
    """
    angles_BTR = positions_BT[..., None].float() * inverse_frequencies(width, positions_BT.device)
    angles_BTR = torch.cat((angles_BTR, angles_BTR), dim=-1)[:, None]
    return angles_BTR.cos().to(dtype), angles_BTR.sin().to(dtype)


def head_tables(position_ids: Tensor, head_width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin over a whole head, each [B, 1, T, D]; position_ids [B, 2, T] (position, block position) or [B, T]."""
    if position_ids.dim() == 2:
        return rotary_tables(position_ids, head_width, dtype)
    cos0, sin0 = rotary_tables(position_ids[:, 0], head_width // 2, dtype)
    cos1, sin1 = rotary_tables(position_ids[:, 1], head_width // 2, dtype)
    return torch.cat((cos0, cos1), dim=-1), torch.cat((sin0, sin1), dim=-1)


def tables_to(num_positions: int, width: int, device: torch.device) -> Tensor:
    """cos and sin of the positions 0..N-1, float32 [2, N, R], for one part of the head."""
    tables = rotary_tables(torch.arange(num_positions, device=device)[None], width, torch.float32)
    return torch.cat(tables).squeeze(1)


def rows_at(tables_2NR: Tensor, positions_BP: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin of `head_tables` at one position of each row, each [B, D], looked up; the host reads nothing.

    `tables_2NR` are of `tables_to`, R = D / P. `positions_BP` are int64, position or (position, block position); one
    behind the last of the tables counts as that one.
    """
    wanted = positions_BP.flatten().clamp(max=tables_2NR.shape[1] - 1)
    both_2BD = tables_2NR.index_select(1, wanted).view(2, len(positions_BP), -1).to(dtype)
    cos_BD, sin_BD = both_2BD.unbind()
    return cos_BD, sin_BD


def rotate(x_BHTD: Tensor, tables: tuple[Tensor, Tensor], parts: int) -> Tensor:
    """Rotate queries or keys [B, H, T, D]; `parts` is the number of position rows (2 or 1)."""
    cos, sin = tables
    pairs = x_BHTD.unflatten(-1, (parts, 2, -1))
    rotated = torch.stack((-pairs[..., 1, :], pairs[..., 0, :]), dim=-2).flatten(-3)
    return x_BHTD * cos + rotated * sin


def pair_tables(
    positions_BT: Tensor, width: int, dtype: torch.dtype, base: float = ROTARY_BASE, divisor: float = 1
) -> tuple[Tensor, Tensor]:
    """cos and sin of each of R/2 pairs, [B, 1, T, R/2], in float32 and rounded once at the end; R = `width`.

    Angles are position / divisor * base^(-2i/R). ChatGLM2-6B and CodeGeeX2-6B compute them in the model's type
    upstream, which in bfloat16 merges neighbouring positions.
    """
    exponents = torch.arange(0, width, 2, dtype=torch.float32, device=positions_BT.device) / width
    angles = (positions_BT[:, None, :, None].float() / divisor) * (1.0 / base**exponents)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate_pairs(x_BHTD: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate the pairs (0, 1), (2, 3), ... of the first 2 * tables' width elements of each head."""
    cos, sin = tables
    rotated, passed = x_BHTD.split((2 * cos.shape[-1], x_BHTD.shape[-1] - 2 * cos.shape[-1]), dim=-1)
    even, odd = rotated[..., 0::2], rotated[..., 1::2]
    pairs = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1)
    return torch.cat((pairs.flatten(-2), passed), dim=-1)
