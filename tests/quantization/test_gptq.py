"""GPTQ of one weight: laws that hold for any weight and inputs, and inputs from which nothing can be learnt."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from chatglm.errors import InvalidRequestError
from chatglm.kernels.packing import dequantize, largest, quantize_rows, round_to, unpack_int4
from chatglm.quantization import gptq
from chatglm.quantization.gptq import InputMoments, Rounded, quantize_by_inputs

laws = settings(max_examples=25, deadline=None, derandomize=True, database=None)


def inputs(num_columns: int, seed: int = 0, num_inputs: int = 400) -> Tensor:
    """Inputs of a few directions and little noise, as those of a network are."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(num_columns // 4, num_columns, generator=generator)
    strengths = torch.randn(num_inputs, num_columns // 4, generator=generator)
    return strengths @ directions + 0.1 * torch.randn(num_inputs, num_columns, generator=generator)


def moments_of(x: Tensor) -> InputMoments:
    moments = InputMoments(x.shape[1])
    moments.add(x)
    return moments


def made_of(sum_II: Tensor, num_inputs: int = 400) -> InputMoments:
    moments = InputMoments(len(sum_II))
    moments.sum_II, moments.num_inputs = sum_II, num_inputs
    return moments


def weight_of(num_rows: int, num_columns: int, seed: int = 0, dtype: torch.dtype = torch.float16) -> Tensor:
    generator = torch.Generator().manual_seed(1000 + seed)
    return (torch.randn(num_rows, num_columns, generator=generator) * 0.05).to(dtype)


def integers(rounded: Rounded, bits: int) -> Tensor:
    return unpack_int4(rounded.packed) if bits == 4 else rounded.packed


def output_error(weight: Tensor, packed: Tensor, scale: Tensor, bits: int, x: Tensor) -> float:
    return float((x @ (dequantize(packed, scale, bits, torch.float32) - weight.float()).T).norm())


@given(seed=st.integers(0, 99), bits=st.sampled_from([4, 8]), group_size=st.sampled_from([0, 32]))
@laws
def test_outputs_are_nearer_than_those_of_plain_rounding(seed: int, bits: int, group_size: int) -> None:
    """Also for inputs that it has not seen, of the same kind."""
    x, weight = inputs(64, seed, 800), weight_of(6, 64, seed)
    seen, unseen = x[:400], x[400:]
    rounded = quantize_by_inputs(weight, moments_of(seen), bits, group_size)
    plain = quantize_rows(weight, bits, group_size)
    for given_x in (seen, unseen):
        ours = output_error(weight, rounded.packed, rounded.scale, bits, given_x)
        assert ours < 0.7 * output_error(weight, *plain, bits, given_x)


@given(
    seed=st.integers(0, 99), bits=st.sampled_from([4, 8]), group_size=st.sampled_from([0, 32]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)  # fmt: skip
@laws
def test_the_format_is_that_of_plain_rounding(seed: int, bits: int, group_size: int, dtype: torch.dtype) -> None:
    weight = weight_of(5, 64, seed, dtype)
    rounded = quantize_by_inputs(weight, moments_of(inputs(64, seed)), bits, group_size)
    packed, scale = quantize_rows(weight, bits, group_size)
    assert (rounded.packed.shape, rounded.packed.dtype) == (packed.shape, packed.dtype)
    assert (rounded.scale.shape, rounded.scale.dtype) == (scale.shape, scale.dtype)
    assert int(integers(rounded, bits).abs().max()) <= largest(bits)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group_size", [0, 32])
def test_without_correlations_it_rounds_to_the_nearest(bits: int, group_size: int) -> None:
    weight = weight_of(5, 64)
    rounded = quantize_by_inputs(weight, made_of(torch.diag(torch.rand(64) + 0.1)), bits, group_size)
    scale = rounded.scale.float().reshape(5, -1).repeat_interleave(group_size or 64, dim=1)
    assert torch.equal(integers(rounded, bits), round_to(weight.float(), scale, bits))


@given(seed=st.integers(0, 99))
@laws
def test_rows_do_not_know_of_each_other(seed: int) -> None:
    weight, moments = weight_of(6, 32, seed), moments_of(inputs(32, seed))
    whole = quantize_by_inputs(weight, moments, 4)
    parts = [quantize_by_inputs(part, moments, 4) for part in weight.split(2)]
    assert torch.equal(whole.packed, torch.cat([part.packed for part in parts]))
    assert torch.equal(whole.scale, torch.cat([part.scale for part in parts]))


@given(seed=st.integers(0, 99))
@laws
def test_the_order_of_columns_does_not_matter(seed: int) -> None:
    """Per row: groups are neighbours, so there it does."""
    weight, moments = weight_of(4, 32, seed), moments_of(inputs(32, seed))
    order = torch.randperm(32, generator=torch.Generator().manual_seed(seed))
    rounded = quantize_by_inputs(weight, moments, 8)
    reordered = quantize_by_inputs(weight[:, order], made_of(moments.sum_II[order][:, order]), 8)
    assert torch.equal(reordered.packed, rounded.packed[:, order])


def test_columns_in_blocks_are_columns_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, moments = weight_of(4, 64), moments_of(inputs(64))
    expected = quantize_by_inputs(weight, moments, 4)
    for columns in (1, 7, 64):
        monkeypatch.setattr(gptq, "COLUMNS_AT_ONCE", columns)
        assert torch.equal(quantize_by_inputs(weight, moments, 4).packed, expected.packed)


def test_rows_in_parts_find_the_same_scales(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, moments = weight_of(5, 64), moments_of(inputs(64))
    expected = quantize_by_inputs(weight, moments, 4)
    monkeypatch.setattr(gptq, "WEIGHTS_AT_ONCE", 100)
    assert torch.equal(quantize_by_inputs(weight, moments, 4).scale, expected.scale)


def test_large_layers_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule for layers whose moments would not fit as float64 costs next to nothing."""
    x, weight = inputs(64), weight_of(32, 64)
    exact = quantize_by_inputs(weight, moments_of(x), 4)
    monkeypatch.setattr(gptq, "MOST_COLUMNS_IN_FLOAT64", 0)
    rounded = quantize_by_inputs(weight, moments_of(x), 4)
    errors = [output_error(weight, result.packed, result.scale, 4, x) for result in (rounded, exact)]
    assert errors[0] == pytest.approx(errors[1], rel=0.02)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("num_inputs", [0, 1, 5])
def test_too_few_inputs(num_inputs: int, bits: int) -> None:
    """Singular moments are damped; without any input the weight is rounded to the nearest."""
    x, weight = inputs(32, num_inputs=num_inputs), weight_of(4, 32)
    rounded = quantize_by_inputs(weight, moments_of(x), bits)
    assert bool(rounded.scale.isfinite().all())
    dequantized = dequantize(rounded.packed, rounded.scale, bits, torch.float32)
    assert float((dequantized - weight.float()).abs().max()) < 0.35 * float(weight.abs().max())
    if num_inputs == 0:
        assert torch.equal(integers(rounded, bits), round_to(weight.float(), rounded.scale.float()[:, None], bits))


def test_columns_that_are_always_zero_are_rounded_to_the_nearest() -> None:
    x, weight = inputs(32), weight_of(4, 32)
    x[:, [3, 17]] = 0
    rounded = quantize_by_inputs(weight, moments_of(x), 8)
    nearest = round_to(weight.float(), rounded.scale.float()[:, None], 8)
    assert torch.equal(rounded.packed[:, [3, 17]], nearest[:, [3, 17]])


def test_damping_is_raised_until_moments_can_be_factored() -> None:
    """Rounding errors of a long sum can leave H with a negative eigenvalue."""
    sum_II = moments_of(inputs(32)).sum_II
    assert quantize_by_inputs(weight_of(4, 32), made_of(sum_II), 4, damping=0.01).damping == 0.01
    mean = float(sum_II.diagonal().mean())
    rounded = quantize_by_inputs(weight_of(4, 32), made_of(sum_II - torch.eye(32) * 0.2 * mean), 4, damping=0.01)
    assert rounded.damping == pytest.approx(1)
    assert bool(rounded.scale.isfinite().all())


def test_the_usual_damping_is_larger_for_few_inputs() -> None:
    x = inputs(32, num_inputs=4000)
    used = [quantize_by_inputs(weight_of(4, 32), moments_of(x[:number]), 4).damping for number in (0, 8, 160, 4000)]
    assert used == [gptq.MOST_DAMPING, gptq.MOST_DAMPING, pytest.approx(0.1), gptq.LEAST_DAMPING]


def test_damping_keeps_from_learning_chance_by_heart() -> None:
    """Inputs without any correlation, as few as columns: what they seem to have in common does not hold for others."""
    x, weight = torch.randn(1064, 64, generator=torch.Generator().manual_seed(0)), weight_of(64, 64)
    moments = moments_of(x[:64])
    results = [quantize_by_inputs(weight, moments, 4, damping=damping) for damping in (None, 1e-4)]
    errors = [output_error(weight, result.packed, result.scale, 4, x[64:]) for result in results]
    assert errors[0] < 0.8 * errors[1]


@pytest.mark.parametrize("group_size", [0, 32])
def test_rows_of_zeros_stay_zero(group_size: int) -> None:
    weight = weight_of(3, 32)
    weight[1] = 0
    rounded = quantize_by_inputs(weight, moments_of(inputs(32)), 4, group_size)
    assert not dequantize(rounded.packed, rounded.scale, 4, torch.float32)[1].any()


def test_moments_are_those_of_all_inputs() -> None:
    x = inputs(16)
    moments = InputMoments(16)
    for part in x.reshape(4, 10, 10, 16):
        moments.add(part.half())
    torch.testing.assert_close(moments.sum_II, x.half().float().T @ x.half().float(), rtol=1e-5, atol=1e-3)
    assert moments.num_inputs == 400


def test_what_cannot_be_done_is_refused() -> None:
    weight, moments = weight_of(2, 32), moments_of(inputs(32))
    with pytest.raises(InvalidRequestError, match="4 or 8 bits, not 5"):
        quantize_by_inputs(weight, moments, 5)
    with pytest.raises(InvalidRequestError, match="odd"):
        quantize_by_inputs(weight_of(2, 31), moments_of(inputs(31)), 4)
    with pytest.raises(InvalidRequestError, match="groups of 64"):
        quantize_by_inputs(weight, moments, 4, 64)
    for damping in (0.0, -1.0, float("nan")):
        with pytest.raises(InvalidRequestError, match="damping"):
            quantize_by_inputs(weight, moments, 4, damping=damping)
    with pytest.raises(InvalidRequestError, match="not finite"):
        quantize_by_inputs(weight, made_of(moments.sum_II * float("nan")), 4)
