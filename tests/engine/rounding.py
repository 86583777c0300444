"""Whether torch's own products round a row alike in any company, which is what exact bfloat16 answers rest on."""

from __future__ import annotations

import functools

import pytest
import torch
from torch.nn import functional as F


@functools.cache
def has_even_bfloat16() -> bool:
    """True on processors with bfloat16 instructions; where oneDNN imitates them it depends on the number of rows."""
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(rows, 2048, generator=generator).bfloat16() for rows in (9, 4096))
    whole = F.linear(x, weight)
    return all(torch.equal(F.linear(x[:rows], weight), whole[:rows]) for rows in range(2, 9))


def skip_without_even_bfloat16() -> None:
    if not has_even_bfloat16():
        pytest.skip("This processor's bfloat16 products round a row differently beside others.")
