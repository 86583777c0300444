"""Left padding of one row, with the mask and positions that the published tokenizer returns (drawn in positions.py)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Row = tuple[list[int], npt.NDArray[np.bool_], npt.NDArray[np.int64]]


def pad_row(ids: Sequence[int], length: int, pad_id: int, sop_id: int, mask_ids: Sequence[int]) -> Row:
    """Pad a row of ids to `length` columns T; a longer row stays as it is. Without `<sop>` the whole row is context.

    Later positions repeat the place of the first of `mask_ids`, in order of preference, in the context, or count on.
    Returns ids [T]; mask bool [1, T, T], True = hidden, pads hidden from and to everyone; positions int64 [2, T]
    (position, block position), 0 on pads and counted from the first real token.
    """
    num_ids = len(ids)
    sop = list(ids).index(sop_id) if sop_id in ids else num_ids
    columns = np.arange(num_ids, dtype=np.int64)
    hidden = ~np.tri(num_ids, dtype=np.bool_)
    hidden[:, :sop] = False
    context = list(ids[:sop])
    position = columns.copy()
    position[sop:] = next((context.index(mask_id) for mask_id in mask_ids if mask_id in context), position[sop:])
    pads = (max(0, length - num_ids), 0)
    mask = np.pad(hidden, (pads, pads), constant_values=True)[None]
    positions = np.pad(np.stack([position, np.maximum(columns - sop + 1, 0)]), ((0, 0), pads))
    return [pad_id] * pads[0] + list(ids), mask, positions
