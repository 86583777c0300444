"""The norm of a sum, compiled for cards that are not there: registers, and how a thread reads and writes."""

from __future__ import annotations

import pytest

from tests.kernels.triton.compiling import ARCHITECTURES, by_architecture, compile_kernel, count
from tests.kernels.triton.ordering import WIDE_LOAD, WIDE_STORE, wide_loads_before_use

norm = pytest.importorskip("chatglm.kernels.triton.triton_norm")

WIDTHS = by_architecture(*((one, 4096) for one in ARCHITECTURES), (90, 8192), (86, 8192), (90, norm.MAX_WIDTH))


@pytest.mark.parametrize("num_partials", [1, 8])
@pytest.mark.parametrize(("architecture", "width"), WIDTHS)
def test_a_row_stays_in_registers(width: int, architecture: int, num_partials: int) -> None:
    """Every number is read once, 16 bytes at a time: five rows of 16-bit numbers, or four and the partial products."""
    halves = dict.fromkeys(("branch_bias", "residual", "weight", "bias", "result"), "*fp16")
    ahead = norm.num_ahead(width, num_partials)
    compiled = compile_kernel(
        norm.residual_norm,
        architecture,
        {**halves, "branch": "*fp16" if num_partials == 1 else "*fp32", "alpha": "fp32", "eps": "fp32"},
        {"PARTIALS": num_partials, "AHEAD": ahead, "HAS_BIAS": True, "WIDTH": width, "BLOCK": width},
        num_warps=norm.num_warps(width),
    )
    turns = width // (norm.num_warps(width) * norm.ELEMENTS_PER_WARP)
    assert compiled.stack <= (0 if width <= 8192 else 64)  # a few numbers of the widest rows do not find a register
    assert compiled.shared <= 1024
    of_partial = turns if num_partials == 1 else 2 * turns  # 16-bit numbers, or float32
    assert count(compiled.sass, WIDE_LOAD) == count(compiled.sass, "LDG") == 4 * turns + num_partials * of_partial
    assert wide_loads_before_use(compiled.sass) >= 4 * turns + ahead * of_partial
    assert count(compiled.sass, WIDE_STORE) == count(compiled.sass, "STG") == turns
