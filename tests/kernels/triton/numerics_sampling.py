"""Candidates drawn by the kernel: the same as plain torch draws, but for draws at the very edge between two."""

from __future__ import annotations

import pytest
import torch

from chatglm.generation import sampling
from chatglm.generation.sampling import SamplingRows
from chatglm.kernels.triton import triton_sampling
from tests.kernels.triton.numerics import DEVICE

ROWS = 30
SLOW = pytest.mark.slow


def rows_of(seed: int, num_rows: int = ROWS) -> SamplingRows:
    """Parameters of all kinds, greedy ones among them."""
    chance = torch.Generator().manual_seed(seed)

    def one_of(*values: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype)[torch.randint(len(values), (num_rows,), generator=chance)].to(DEVICE)

    return SamplingRows(
        seeds=torch.randint(-(2**62), 2**62, (num_rows,), generator=chance).to(DEVICE),
        counts=torch.randint(3000, (num_rows,), generator=chance).to(DEVICE),
        temperatures=one_of(0.0, 0.1, 0.95, 3.0),
        top_ks=one_of(0, 1, 5, 50, 64, 1000, dtype=torch.int64),
        top_ps=one_of(0.0001, 0.3, 0.7, 1.0),
        eos_ids=torch.zeros(num_rows, 1, dtype=torch.int64, device=DEVICE),
        eos_allowed=None,
        penalties=torch.ones(num_rows, device=DEVICE),
    )


def drawn(kept: torch.Tensor, rows: SamplingRows) -> torch.Tensor:
    result = torch.full((len(kept),), -7, dtype=torch.int64, device=DEVICE)
    triton_sampling.launch(kept, rows.seeds, rows.counts, rows.temperatures, rows.top_ks, rows.top_ps, result)
    return result


@pytest.mark.parametrize(
    ("num_kept", "seeds"), [(37, 1), pytest.param(37, 3, marks=SLOW), pytest.param(64, 3, marks=SLOW)]
)
def test_as_plain_torch(num_kept: int, seeds: int) -> None:
    differing = 0
    for seed in range(seeds):
        rows = rows_of(seed)
        kept = (torch.randn(ROWS, num_kept) * 4).sort(dim=1, descending=True).values.to(DEVICE)
        kept[3, 1:] = kept[3, 0]  # ties
        ours, plain = drawn(kept, rows), sampling.draw_reference(kept, rows)
        assert int(ours.min()) >= 0
        assert int(ours.max()) < num_kept
        differing += int((ours != plain).sum())
    assert differing <= 1, "sums in another order may move an edge by their last bit, and no more"


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy's, in the interpreter
def test_logits_that_are_nan_still_give_a_candidate() -> None:
    rows = rows_of(9, 8)
    for bad in (torch.nan, torch.inf, -torch.inf):
        candidates = drawn(torch.full((8, 64), bad, device=DEVICE), rows)
        assert torch.equal(candidates.clamp(0, 63), candidates)
