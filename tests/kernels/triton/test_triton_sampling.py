"""The drawing of a candidate, compiled for cards that are not there: a warp's registers suffice."""

from __future__ import annotations

import pytest

from chatglm.generation.sampling import NUM_CANDIDATES
from tests.kernels.triton.compiling import ARCHITECTURES, compile_kernel

draw = pytest.importorskip("chatglm.kernels.triton.triton_sampling")


@pytest.mark.parametrize("architecture", [ARCHITECTURES[0], ARCHITECTURES[-1]])
def test_it_stays_in_registers(architecture: int) -> None:
    numbers = dict.fromkeys(("seeds", "counts", "top_ks", "result"), "*i64")
    fractions = dict.fromkeys(("kept", "temperatures", "top_ps"), "*fp32")
    constants = {"STEP": draw.STEP, "FIRST": draw.FIRST, "SECOND": draw.SECOND}
    sizes = {"NUM_KEPT": NUM_CANDIDATES, "BLOCK": NUM_CANDIDATES}
    compiled = compile_kernel(draw.draw, architecture, {**numbers, **fractions}, {**sizes, **constants}, num_warps=1)
    assert compiled.stack == 0
    assert compiled.registers <= 64
