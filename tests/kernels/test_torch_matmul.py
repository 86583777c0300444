"""Products without a compiler: close to float64 on every shape, and a packed form that follows its weight."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from chatglm.kernels import reference
from chatglm.kernels.cpu import torch_matmul
from chatglm.kernels.cpu.torch_matmul import linear
from tests.kernels.cases import Product, random_product

# bfloat16 keeps 8 bits: each activation is off by at most 2^-9 of itself, the result (and scales of groups) once more.
BOUND = 2**-7
SHAPES = [
    (tokens, rows, columns)
    for tokens in (1, 15, 16, 63, 64)
    for rows, columns in ((1, 2), (31, 34), (64, 64), (33, 126), (48, 130), (80, 192), (600, 384))
]


@pytest.fixture(autouse=True)
def no_forms() -> Iterator[None]:
    torch_matmul._forms.clear()
    yield
    torch_matmul._forms.clear()


def error(result: Tensor, product: Product) -> float:
    """The largest error, relative to the sizes of what is added."""
    assert result.dtype == torch.float32
    return float(((result.double() - product.exact(product.x)).abs() / product.size(product.x)).max())


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group_size", [0, 32, 64, 128])
def test_ragged_shapes(bits: int, group_size: int) -> None:
    for seed, (tokens, rows, columns) in enumerate(SHAPES):
        if not group_size or columns % group_size == 0:
            product = random_product(
                tokens, rows, columns, bits, group_size=group_size, half=seed % 2 == 0, bias=seed % 3 > 0, seed=seed
            )
            assert error(linear(product.x, *product.arguments), product) <= BOUND, (tokens, rows, columns)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("tokens", [1, 70])
def test_processors_that_do_not_multiply_bfloat16(bits: int, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_matmul, "_multiplies_bfloat16", lambda: False)
    product = random_product(tokens, 48, 128, bits)
    assert error(linear(product.x, *product.arguments), product) <= (BOUND if tokens == 1 else 1e-6)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group_size", [0, 32])
def test_a_torch_without_the_operators(bits: int, group_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_matmul, "_operator", lambda name: None)
    product = random_product(3, 48, 128, bits, group_size=group_size)
    assert error(linear(product.x, *product.arguments), product) <= BOUND


def test_every_int4_byte() -> None:
    product = random_product(1, 32, 512, 4, bias=False)
    product.weight = torch.arange(256).to(torch.uint8).view(torch.int8).expand(32, -1).contiguous()
    product.x = torch.eye(512)[:31]  # few rows: the operator
    few = linear(product.x, *product.arguments)
    product.x = torch.eye(512)
    many = linear(product.x, *product.arguments)
    torch.testing.assert_close(many.double(), product.exact(product.x), rtol=2e-7, atol=0)
    assert torch.equal(few, many[:31])


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("tokens", [1, 70])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_visible(bits: int, tokens: int, bad: float) -> None:
    product = random_product(tokens, 64, 128, bits)
    product.x[0, 5] = bad
    result = linear(product.x, *product.arguments)
    assert not result[0].isfinite().any()
    assert result[1:].isfinite().all()


@pytest.mark.parametrize("bits", [4, 8])
def test_extreme_scales(bits: int) -> None:
    for scale in (1e-30, 1e4):
        product = random_product(2, 64, 128, bits, bias=False)
        product.scale *= scale
        assert error(linear(product.x, *product.arguments), product) <= BOUND


# --- the packed form ---


def test_the_packed_form_is_made_once_and_goes_with_its_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    make = torch_matmul._make_form
    monkeypatch.setattr(torch_matmul, "_make_form", lambda *arguments: made.append(None) or make(*arguments))
    product = random_product(1, 64, 128, 4)
    for _ in range(3):
        linear(product.x, *product.arguments)
    assert len(made) == len(torch_matmul._forms) == 1
    other = random_product(1, 64, 128, 4, seed=1)
    assert error(linear(other.x, *other.arguments), other) <= BOUND
    assert len(torch_matmul._forms) == 2
    del product
    gc.collect()
    assert len(torch_matmul._forms) == 1


def test_many_rows_need_no_packed_form() -> None:
    product = random_product(64, 64, 128, 4)
    linear(product.x, *product.arguments)
    assert not torch_matmul._forms


@pytest.mark.parametrize("way", ["copy", "data", "memory"])
def test_a_weight_with_new_content_is_noticed(way: str) -> None:
    """Loaded again, given other data, or overwritten in memory as a buffer that layers are read into."""
    product, other = random_product(1, 64, 128, 4), random_product(1, 64, 128, 4, seed=1)
    product.weight = torch.nn.Parameter(product.weight, requires_grad=False)
    linear(product.x, *product.arguments)
    if way == "copy":
        product.weight.copy_(other.weight)
    elif way == "data":
        product.weight.data = other.weight
    else:
        product.weight.numpy()[:] = other.weight.numpy()
    for _ in range(2):
        assert error(linear(product.x, *product.arguments), product) <= BOUND


def test_the_scale_is_not_part_of_the_form() -> None:
    product = random_product(1, 64, 128, 4)
    linear(product.x, *product.arguments)
    product.scale = product.scale * 3
    assert error(linear(product.x, *product.arguments), product) <= BOUND


def test_group_scales_that_change_are_noticed() -> None:
    product = random_product(1, 64, 128, 4, group_size=32)
    linear(product.x, *product.arguments)
    product.scale = product.scale * 3
    assert error(linear(product.x, *product.arguments), product) <= BOUND


def test_types_of_scales_that_it_does_not_know_go_to_the_reference() -> None:
    product = random_product(3, 64, 128, 4)
    product.scale = product.scale.double()
    assert torch.equal(linear(product.x, *product.arguments), reference.linear(product.x, *product.arguments))
