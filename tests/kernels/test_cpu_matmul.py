"""The C library against float64: ragged shapes, every byte, every instruction set, threads, the ends of memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chatglm.kernels.cpu import self_test
from tests.kernels.cases import (
    ISA_NAMES,
    Product,
    assert_is_product,
    instruction_set,
    is_sanitized,
    multiply,
    native,
    random_product,
)
from tests.tokenizers import laws

# Sums of float32 in an order of their own; measured: 3e-7.
BOUND = 1e-6
COLUMNS = (2, 6, 34, 62, 64, 126, 128, 130, 192, 256, 384, 2050, 4098)
ROWS_AND_TOKENS = (
    (1, 1), (3, 2), (31, 3), (33, 7), (64, 8), (31, 12), (33, 13), (161, 40), (1, 5), (3, 6), (128, 25), (2, 100),
)  # fmt: skip

Function = Callable[..., int]


@pytest.fixture(params=range(len(ISA_NAMES)), ids=ISA_NAMES, autouse=True)
def isa(request: pytest.FixtureRequest) -> Iterator[int]:
    with instruction_set(request.param):
        yield request.param


def products(bits: int) -> Iterator[Product]:
    """Every width with every group size that divides it, and every number of rows and tokens with some of them."""
    for number, num_columns in enumerate(COLUMNS):
        group_sizes = [size for size in (0, 32, 64, 128) if not size or num_columns % size == 0]
        for group_size in group_sizes:
            for offset in range(0, len(ROWS_AND_TOKENS), 1 if num_columns <= 256 else 4):
                rows, tokens = ROWS_AND_TOKENS[(offset + number) % len(ROWS_AND_TOKENS)]
                seed = number + offset
                yield random_product(
                    tokens, rows, num_columns, bits, group_size=group_size, half=seed % 2 == 0, bias=seed % 3 > 0,
                    seed=seed,
                )  # fmt: skip


@pytest.mark.parametrize("bits", [4, 8])
def test_products_of_ragged_shapes(bits: int) -> None:
    for product in products(bits):
        assert_is_product(multiply(native().library.chatglm_linear_float, product), product, BOUND)
        assert_is_product(multiply(native().library.chatglm_linear_int8, product), product, BOUND, as_int8=True)


@settings(laws, max_examples=50)
@given(
    bits=st.sampled_from([4, 8]),
    group_size=st.sampled_from([0, 32, 64, 128]),
    units=st.integers(1, 9),
    rows=st.integers(1, 140),
    tokens=st.integers(1, 30),
    threads=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_products_of_any_shape(
    bits: int, group_size: int, units: int, rows: int, tokens: int, threads: int, seed: int
) -> None:
    product = random_product(tokens, rows, units * (group_size or 2), bits, group_size=group_size, seed=seed)
    library = native().library
    assert_is_product(multiply(library.chatglm_linear_float, product, threads), product, BOUND)
    assert_is_product(multiply(library.chatglm_linear_int8, product, threads), product, BOUND, as_int8=True)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group_size", [0, 32, 64, 128])
def test_every_byte_has_its_value(bits: int, group_size: int) -> None:
    """One-hot activations read single weights, so nothing is added up: float products and dequantizing are exact."""
    num_columns = 256 * 8 // bits
    product = random_product(1, 3, num_columns, bits, group_size=group_size, half=True, bias=False)
    product.weight = (
        torch.stack([torch.arange(256).roll(shift) for shift in (0, 1, 97)]).to(torch.uint8).view(torch.int8)
    )
    weight = product.exact_weight
    product.x = torch.eye(num_columns)
    assert torch.equal(multiply(native().library.chatglm_linear_float, product).double(), weight.T)
    rounded = multiply(native().library.chatglm_linear_int8, product)
    torch.testing.assert_close(rounded.double(), weight.T, rtol=3e-7, atol=0)
    assert torch.equal(native().dequantize(product.weight, product.scale, bits).double(), weight)


@pytest.mark.parametrize("bits", [4, 8])
def test_dequantize(bits: int) -> None:
    for product in products(bits):
        if product.scale.dtype == torch.float16:  # 8 by 11 bits: exact
            result = native().dequantize(product.weight, product.scale, bits)
            assert torch.equal(result.double(), product.exact_weight)


@pytest.fixture(params=["float", "int8"])
def function(request: pytest.FixtureRequest) -> Function:
    return getattr(native().library, f"chatglm_linear_{request.param}")


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("tokens", [1, 3, 13, 40])
def test_tokens_together_are_tokens_alone(function: Function, bits: int, tokens: int) -> None:
    product = random_product(tokens, 70, 386, bits)
    together = multiply(function, product)
    for token in range(tokens):
        alone = Product(product.x[token : token + 1], *product.arguments)
        difference = (multiply(function, alone)[0] - together[token]).abs()
        assert bool((difference <= 1e-6 * product.size(product.x, as_int8=True)[token]).all())


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("tokens", [1, 5, 40])
def test_threads_change_nothing(function: Function, bits: int, tokens: int) -> None:
    product = random_product(tokens, 300, 1090, bits)  # large enough for threads to be used
    one = multiply(function, product, threads=1)
    assert torch.equal(multiply(function, product, threads=2), one)
    assert torch.equal(multiply(function, product, threads=3), one)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("tokens", [1, 4, 30])
@pytest.mark.parametrize("group_size", [0, 32])
def test_extreme_sizes(function: Function, bits: int, tokens: int, group_size: int) -> None:
    """Scales and activations of any size that float32 holds."""
    for scale, activation in ((1e-30, 1.0), (1e4, 1.0), (1.0, 1e-30), (1e-3, 1e30), (1e-20, 1e20), (3e-6, 3e4)):
        product = random_product(tokens, 9, 96, bits, group_size=group_size, bias=False)
        product.scale *= scale
        product.x *= activation
        as_int8 = function is native().library.chatglm_linear_int8
        assert_is_product(multiply(function, product), product, BOUND, as_int8=as_int8)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("tokens", [1, 4, 30])
@pytest.mark.parametrize("group_size", [0, 64])
def test_zeros_give_the_bias(function: Function, bits: int, tokens: int, group_size: int) -> None:
    as_int8 = function is native().library.chatglm_linear_int8
    for part in ("weight", "scale", "x"):
        product = random_product(tokens, 33, 192, bits, group_size=group_size)
        getattr(product, part).zero_()
        assert product.bias is not None
        result = multiply(function, product)
        assert_is_product(result, product, BOUND, as_int8=as_int8)
        assert part == "weight" or torch.equal(result, product.bias.expand(tokens, -1))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("tokens", [1, 4, 30])
@pytest.mark.parametrize("group_size", [0, 32])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_stays_visible(
    function: Function, bits: int, tokens: int, group_size: int, bad: float
) -> None:
    """In every output of its token, whatever the weights are, and in no other token's."""
    product = random_product(tokens, 35, 130 if not group_size else 160, bits, group_size=group_size)
    clean = multiply(function, product)
    for column in (0, 63, product.x.shape[1] - 1):
        spoiled = Product(product.x.clone(), *product.arguments)
        spoiled.x[tokens // 2, column] = bad
        result = multiply(function, spoiled)
        assert not result[tokens // 2].isfinite().any()
        others = torch.arange(tokens) != tokens // 2
        assert torch.equal(result[others], clean[others])


def test_the_self_test_passes() -> None:
    """All functions in one go, attention too."""
    assert self_test.find_fault(native()) == ""


def test_a_sanitized_build_is_one() -> None:
    assert native().library.chatglm_is_sanitized() == is_sanitized()
