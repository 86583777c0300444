"""Rounding and packing: laws on random weights, upstream's numbers in tests/golden/test_quantized.py."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chatglm.errors import InvalidRequestError
from chatglm.kernels.packing import (
    GROUP_SIZES,
    dequantize,
    half_scale,
    largest,
    pack_int4,
    quantize_rows,
    unpack_int4,
)


def test_packing_is_bijective_over_all_bytes() -> None:
    bytes_ = torch.arange(-128, 128).to(torch.int8).reshape(1, -1)
    assert torch.equal(pack_int4(unpack_int4(bytes_)), bytes_)
    values = torch.tensor([[a, b] for a in range(-8, 8) for b in range(-8, 8)], dtype=torch.int8)
    assert torch.equal(unpack_int4(pack_int4(values)), values)
    assert len({int(byte) for byte in pack_int4(values)}) == 256


def test_even_columns_are_in_the_high_nibble() -> None:
    assert pack_int4(torch.tensor([[1, 2, -1, 7]], dtype=torch.int8)).tolist() == [[0x12, 0xF7 - 256]]


@given(
    rows=st.integers(1, 6), pairs=st.integers(1, 20), bits=st.sampled_from([4, 8]), scale=st.floats(1e-4, 1e4),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]), seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_error_is_at_most_half_a_step(
    rows: int, pairs: int, bits: int, scale: float, dtype: torch.dtype, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = (torch.randn(rows, 2 * pairs, generator=generator) * min(scale, 1e3)).to(dtype)
    packed, scales = quantize_rows(weight, bits)
    assert packed.dtype == torch.int8
    assert packed.shape == (rows, 2 * pairs * bits // 8)
    error = (dequantize(packed, scales, bits, torch.float32) - weight.float()).abs()
    # Half a step, plus what the rounding of quotient and product to the weight's own precision may add.
    slack = weight.float().abs().amax(1, keepdim=True) * torch.finfo(scales.dtype).eps * 2
    # A scale below 6e-5 is a multiple of 2^-24 in half precision, and the largest weight has that many times its error.
    slack += largest(bits) * 2.0**-25 if scales.dtype == torch.float16 else 0
    assert bool((error <= scales.float()[:, None] / 2 + slack + 1e-7).all())
    integers = unpack_int4(packed) if bits == 4 else packed
    assert int(integers.abs().max()) <= largest(bits)


@given(
    rows=st.integers(1, 5), groups=st.integers(1, 4), group_size=st.sampled_from(GROUP_SIZES),
    bits=st.sampled_from([4, 8]), exponent=st.floats(-9, 3), seed=st.integers(0, 99),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_error_of_groups_is_at_most_half_a_step_of_each(
    rows: int, groups: int, group_size: int, bits: int, exponent: float, seed: int, dtype: torch.dtype
) -> None:
    """Down to weights so small that half precision has hardly a digit left for their scale."""
    generator = torch.Generator().manual_seed(seed)
    spread = 10 ** torch.linspace(exponent - 1, exponent, groups).repeat_interleave(group_size)
    weight = (torch.randn(rows, groups * group_size, generator=generator) * spread).to(dtype)
    packed, scales = quantize_rows(weight, bits, group_size)
    assert packed.shape == (rows, weight.shape[1] * bits // 8)
    assert scales.shape == (rows, groups)
    assert scales.dtype == torch.float16
    error = (dequantize(packed, scales, bits, torch.float32) - weight.float()).abs().unflatten(1, (groups, -1))
    step = scales.float()[..., None]
    assert bool((error <= step * 0.50002).all())


@given(exponent=st.floats(-12, 3), digits=st.floats(1, 10))
@settings(max_examples=60, deadline=None)
def test_half_scales_are_hardly_ever_too_small(exponent: float, digits: float) -> None:
    scale = torch.tensor([digits * 10**exponent, 0.0])
    half = half_scale(scale)
    assert half[1] == 0
    assert bool(half.float()[0] * 1.002 >= scale[0])
    assert half.float()[0] <= scale[0] * 1.001 + 6e-8


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_groups_are_rows_of_their_own(bits: int, dtype: torch.dtype) -> None:
    """Rounding in groups is rounding the groups as rows, and undoing it likewise."""
    weight = torch.randn(3, 128).half()
    packed, scales = quantize_rows(weight.float(), bits, 32)
    rows, row_scales = quantize_rows(weight.float().reshape(12, 32), bits, 32)
    assert torch.equal(packed.reshape(12, -1), rows)
    assert torch.equal(scales.reshape(12, 1), row_scales)
    dequantized = dequantize(packed, scales, bits, dtype)
    assert torch.equal(dequantized.reshape(12, 32), dequantize(rows, row_scales[:, 0], bits, dtype))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rows_of_zeros_stay_zero(bits: int, dtype: torch.dtype) -> None:
    """Upstream divides 0 by 0 here."""
    weight = torch.zeros(2, 4, dtype=dtype)
    weight[1, 2] = 1
    packed, scales = quantize_rows(weight, bits)
    assert dequantize(packed, scales, bits, torch.float32).tolist()[0] == [0, 0, 0, 0]
    assert dequantize(packed, scales, bits, torch.float32)[1, 2] == pytest.approx(1, rel=1e-3)


def test_bad_widths_are_rejected() -> None:
    with pytest.raises(InvalidRequestError, match="4 or 8 bits, not 3"):
        quantize_rows(torch.ones(2, 4), 3)
    with pytest.raises(InvalidRequestError, match="odd"):
        quantize_rows(torch.ones(2, 5), 4)
    assert quantize_rows(torch.ones(2, 5), 8)[0].shape == (2, 5)


def test_bad_groups_are_rejected() -> None:
    with pytest.raises(InvalidRequestError, match="32, 64 or 128 of them, not 16"):
        quantize_rows(torch.ones(2, 64), 4, 16)
    with pytest.raises(InvalidRequestError, match="96 columns does not divide into groups of 64"):
        quantize_rows(torch.ones(2, 96), 4, 64)
