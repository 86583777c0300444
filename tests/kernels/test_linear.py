"""The one call, whatever is behind it: types, shapes, tensors with gaps, what does not fit."""

from __future__ import annotations

import pytest
import torch

from chatglm import kernels
from chatglm.kernels import dispatch, reference
from tests.kernels.cases import native, random_product


@pytest.mark.parametrize("name", dispatch.NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(64,), (1, 64), (2, 3, 64), (1, 70, 64), (0, 64), (2, 0, 64)])
def test_any_float_type_and_shape(name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    product = random_product(1, 32, 64, 4, half=dtype == torch.float16)
    x = torch.randn(shape, dtype=dtype)
    with kernels.use(name):
        result = kernels.linear(x, *product.arguments)
    exact = reference.linear(x.double(), *product.arguments)
    assert result.dtype == dtype
    assert result.shape == exact.shape
    assert float((result.double() - exact).norm()) <= 0.012 * float(exact.norm())


@pytest.mark.parametrize("name", dispatch.NAMES)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("tokens", [1, 9, 70])
def test_tensors_with_gaps(name: str, bits: int, tokens: int) -> None:
    """Columns of a larger x, rows of a larger weight, every second row, a half bias: all as their copies."""
    wide = random_product(tokens, 96, 192, bits)
    assert wide.bias is not None
    x = wide.x[:, 64:128]
    with kernels.use(name):
        for weight, scale in (
            (wide.weight[16:48, : 8 * bits], wide.scale[16:48]),
            (wide.weight[::3], wide.scale[::3]),
            (wide.weight[32:64], wide.scale[32:64]),
        ):
            values = x if weight.shape[1] == 8 * bits else wide.x
            result = kernels.linear(values, weight, scale, bits, wide.bias[:32].half())
            copies = values.clone(), weight.clone(), scale.clone(), bits, wide.bias[:32].half().float()
            torch.testing.assert_close(result, kernels.linear(*copies), rtol=0, atol=0.02 * float(result.abs().max()))


@pytest.mark.parametrize("name", dispatch.NAMES)
def test_widths_that_do_not_fit_are_rejected(name: str) -> None:
    product = random_product(2, 16, 64, 4)
    with kernels.use(name):
        for tokens in (2, 70):
            with pytest.raises(RuntimeError, match="shape"):
                kernels.linear(torch.zeros(tokens, 66), *product.arguments)


def test_the_default_type_changes_nothing() -> None:
    product = random_product(3, 16, 64, 4)
    for name in dispatch.NAMES:
        with kernels.use(name):
            expected = kernels.linear(product.x, *product.arguments)
            torch.set_default_dtype(torch.float16)
            try:
                assert torch.equal(kernels.linear(product.x, *product.arguments), expected)
            finally:
                torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group_size", [0, 32])
@pytest.mark.parametrize("tokens", [32, 33, 100])
def test_exact_products_of_many_tokens(bits: int, group_size: int, tokens: int) -> None:
    """Written out in blocks: more rows than one holds, and a rest."""
    native()
    product = random_product(tokens, 1061, 2080, bits, group_size=group_size)
    with kernels.use("exact"):
        result = kernels.linear(product.x, *product.arguments)
    error = (result.double() - product.exact(product.x)).abs()
    assert bool((error <= 2e-6 * product.size(product.x)).all())
