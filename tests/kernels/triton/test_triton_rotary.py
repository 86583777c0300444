"""Turning and storing, compiled for cards that are not there: registers, and how a thread reads and writes."""

from __future__ import annotations

import pytest

from tests.kernels.triton.compiling import ARCHITECTURES, by_architecture, compile_kernel, count
from tests.kernels.triton.ordering import WIDE_STORE, wide_loads_before_use

rotary_store = pytest.importorskip("chatglm.kernels.triton.triton_rotary")

FLOATS = ("qkv", "cos", "sin", "keys", "values", "query")


@pytest.mark.parametrize(("architecture", "parts"), by_architecture(*((one, 2) for one in ARCHITECTURES), (90, 1)))
def test_everything_goes_by_16_bytes(architecture: int, parts: int) -> None:
    """Two halves each of query, key and value in, and out again."""
    pointers = dict.fromkeys(FLOATS, "*fp16") | {"table": "*i32", "lengths": "*i32"}
    compiled = compile_kernel(
        rotary_store.rotate_and_store,
        architecture,
        {**pointers, "num_heads": "i32", "table_width": "i32"},
        {"WIDTH": 128, "BLOCK": 64, "ROTARY_DIMS": parts, "PAGE": 64, "HEADS": rotary_store.HEADS},
        divisible=["num_heads"],
        num_warps=1,
    )
    assert compiled.stack == 0
    assert compiled.registers <= 64
    assert wide_loads_before_use(compiled.sass) == count(compiled.sass, WIDE_STORE) == 6
    assert count(compiled.sass, "STG") == 6
