"""Attention of a step, compiled for cards that are not there: what a thread holds, and how it reads."""

from __future__ import annotations

import pytest

from tests.kernels.triton.compiling import ARCHITECTURES, Compiled, by_architecture, compile_kernel, count
from tests.kernels.triton.ordering import WIDE_LOAD, wide_loads_before_use

attention = pytest.importorskip("chatglm.kernels.triton.triton_attention")

SIZES = {"WIDTH": 128, "BLOCK_WIDTH": 128, "PAGE": 64, "SECTION": attention.SECTION}
NUMBERS = {"num_heads": "i32", "table_width": "i32", "num_sections": "i32"}
BYTES = {"fp16": 2, "bf16": 2, "fp32": 4}
ALL = by_architecture(*((one, "fp16") for one in ARCHITECTURES), (90, "bf16"), (90, "fp32"), (120, "fp32"))


def compile_mix(architecture: int, dtype: str) -> Compiled:
    pointers = dict.fromkeys(("query", "keys", "values"), f"*{dtype}") | dict.fromkeys(("table", "lengths"), "*i32")
    pointers |= dict.fromkeys(("mixed", "stats"), "*fp32")
    return compile_kernel(
        attention.mix_sections,
        architecture,
        {**pointers, "scale": "fp32", **NUMBERS},
        SIZES,
        divisible=["num_heads"],
        num_warps=attention.num_warps(128, BYTES[dtype]),
    )


@pytest.mark.parametrize(("architecture", "dtype"), ALL)
def test_sections(architecture: int, dtype: str) -> None:
    """Keys and values of a section are on their way, in loads of 16 bytes, before any is used; two programs fit."""
    compiled = compile_mix(architecture, dtype)
    num_threads = 32 * attention.num_warps(128, BYTES[dtype])
    loads = 2 * attention.SECTION * 128 * BYTES[dtype] // (num_threads * 16)
    assert compiled.stack == 0
    assert compiled.shared <= 16 << 10
    assert num_threads * compiled.registers <= 65536 // (1 if dtype == "fp32" else 2)
    assert count(compiled.loop, WIDE_LOAD) - loads in (0, 1)  # the queries of a thread may be 16 bytes too
    assert wide_loads_before_use(compiled.loop) >= loads
    # Instructions of a thread for each byte; an H200 has time for 7.8, see docs/lab/gpu-kernels.md.
    assert len(compiled.loop) / (loads * 16) <= 3.5


@pytest.mark.parametrize(("architecture", "dtype"), ALL)
def test_merging(architecture: int, dtype: str) -> None:
    pointers = {"mixed": "*fp32", "stats": "*fp32", "lengths": "*i32", "result": f"*{dtype}"}
    constants = {**SIZES, "GROUP": attention.GROUP}
    compiled = compile_kernel(
        attention.merge_sections, architecture, pointers | NUMBERS, constants, divisible=["num_heads"], num_warps=4
    )
    assert compiled.stack == 0
    assert compiled.registers <= 64
    assert wide_loads_before_use(compiled.loop) == attention.GROUP * 128 * 4 // (4 * 32 * 16)
