"""GELU and rotary in place against float64, for every instruction set."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from chatglm import kernels
from chatglm.kernels import dispatch
from chatglm.nn.rotary import head_tables, rotate

ISAS = ("scalar", "avx2", "avx512")


@pytest.fixture(params=range(3), ids=ISAS, autouse=True)
def isa(request: pytest.FixtureRequest) -> Iterator[None]:
    native = dispatch.native_kernels()
    if native is None:
        pytest.skip("The native kernels cannot be compiled here.")
    if request.param > native.library.chatglm_best_isa():
        pytest.skip(f"This processor has no {ISAS[request.param]}.")
    native.library.chatglm_use_isa(request.param)
    yield
    native.library.chatglm_use_isa(2)


def test_gelu_is_that_of_torch_in_float64() -> None:
    x = torch.cat((torch.linspace(-30, 30, 100_001), torch.randn(8193) * 1e-20))
    exact = F.gelu(x.double(), approximate="tanh")
    error = (kernels.gelu_(x.clone()) - exact).abs()
    assert (error <= 1e-6 * exact.abs() + 1e-6).all()


def test_gelu_of_extremes() -> None:
    x = torch.tensor([0.0, -0.0, 1e30, torch.inf, -1e30, torch.nan])
    result = kernels.gelu_(x)
    assert result[:4].tolist() == [0.0, 0.0, float(torch.tensor(1e30)), torch.inf]
    assert abs(result[4]) < 1e-6
    assert result[5].isnan()


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(("heads", "width", "parts"), [(1, 2, 1), (3, 8, 2), (2, 30, 1), (5, 64, 2), (2, 128, 2)])
def test_rotary_in_place_is_that_of_the_network(heads: int, width: int, parts: int, threads: int) -> None:
    num_tokens = 37
    generator = torch.Generator().manual_seed(width)
    shape = (1, 2, num_tokens) if parts == 2 else (1, num_tokens)
    tables = head_tables(torch.randint(0, 2000, shape, generator=generator), width, torch.float32)
    qkv = torch.randn(1, num_tokens, heads * 3 * width, generator=generator)
    query, key, value = qkv.double().unflatten(-1, (heads, 3 * width)).transpose(1, 2).chunk(3, dim=-1)
    exact_tables = tables[0].double(), tables[1].double()
    exact = torch.cat((rotate(query, exact_tables, parts), rotate(key, exact_tables, parts), value), dim=-1)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        result = kernels.rotate_(qkv, tables, parts).unflatten(-1, (heads, 3 * width)).transpose(1, 2)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(result.double(), exact, rtol=0, atol=2e-6)
    assert torch.equal(result[..., 2 * width :].double(), value)


@pytest.mark.parametrize("bad", ["type", "gaps", "width"])
def test_tensors_of_another_form_are_rejected(bad: str) -> None:
    """The library would read and write where it must not."""
    qkv: Any = torch.zeros(1, 4, 3 * 8)
    tables: Any = torch.ones(1, 1, 4, 8), torch.ones(1, 1, 4, 8)
    if bad == "type":
        qkv = qkv.double()
    elif bad == "gaps":
        qkv = torch.zeros(1, 4, 6 * 8)[..., ::2]
    else:
        tables = torch.ones(1, 1, 4, 7), torch.ones(1, 1, 4, 7)
    with pytest.raises(ValueError, match="takes"):
        kernels.rotate_(qkv, tables, 1)
