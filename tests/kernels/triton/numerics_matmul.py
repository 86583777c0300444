"""Products with packed weights and what belongs to them, run: against float64, upstream's formula, each other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from chatglm import kernels
from chatglm.kernels import reference
from chatglm.kernels.packing import dequantize, pack_int4
from chatglm.kernels.triton import availability, extraction, triton_matmul
from chatglm.kernels.triton.matmul_tiles import MANY_TOKENS, Tile, tile_for
from tests.kernels.triton.numerics import DEVICE, INTERPRETED, poisoned

# Of the sigmoid in GELU, where numpy stands for the card: the result is right.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp")

TYPES = (torch.float16, torch.bfloat16)
# |error| of the whole result over its size. bfloat16 has three binary digits fewer; the interpreter cuts to it instead
# of rounding. Matrix instructions of a card cut while they sum.
TO_EXACT = {
    torch.float16: 4e-4,
    torch.bfloat16: 6.4e-3 if INTERPRETED else 3.2e-3,
    torch.float32: 2e-6 if INTERPRETED else 2e-5,
}
TO_FORMULA = {torch.float16: 1e-3, torch.bfloat16: 8e-3}


class Product:
    """x [M, K], weight [N, K * bits / 8] of any bytes, scale [N] or [N, groups] and bias [N]."""

    def __init__(
        self, num_tokens: int, num_rows: int, num_columns: int, bits: int, dtype: torch.dtype, group_size: int = 0
    ) -> None:
        self.bits = bits
        self.x = torch.randn(num_tokens, num_columns).to(dtype).to(DEVICE)
        packed = torch.randint(-128, 128, (num_rows, num_columns * bits // 8), dtype=torch.int8)
        self.weight = packed.to(DEVICE)
        shape = (num_rows, num_columns // group_size) if group_size else (num_rows,)
        self.scale = ((torch.rand(shape) + 0.1) / 2**bits).half().to(DEVICE)
        self.bias = torch.randn(num_rows).to(dtype).to(DEVICE)
        self.group_size = group_size

    @property
    def exact(self) -> Tensor:
        """x W^T in float64."""
        return self.x.double() @ dequantize(self.weight, self.scale.double(), self.bits, torch.float64).T

    def run(self, tile: Tile, splits: int, dtype: torch.dtype, *, bias: bool = False, gelu: bool = False) -> Tensor:
        y = poisoned(splits, self.x.shape[0], self.weight.shape[0], dtype=dtype)
        packed = self.weight, self.scale, self.bits
        triton_matmul.launch_product(self.x, *packed, self.bias if bias else None, gelu, y, tile, splits)
        return y


def assert_near(result: Tensor, expected: Tensor, bound: float) -> None:
    """The error is `bound` of the size of the result as a whole: single numbers may happen to be near zero."""
    assert result.shape == expected.shape
    assert result.isfinite().all()
    error = (result.double() - expected.double()).norm() / expected.double().norm()
    assert error <= bound, float(error)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    "shape", [(1, 64, 512), (5, 67, 256), (8, 3, 34), (13, 130, 320), (29, 65, 384), (70, 40, 256)]
)
def test_of_any_shape(shape: tuple[int, int, int], bits: int, dtype: torch.dtype) -> None:
    """Rows, columns and tokens that end within a tile; by the tile that such a product has."""
    case = Product(*shape, bits, dtype)
    tile = tile_for(shape[0], bits)
    result = case.run(tile, 1, dtype)[0]
    assert_near(result, case.exact, TO_EXACT[dtype])
    assert_near(result, reference.linear(case.x, case.weight, case.scale, bits, None), TO_FORMULA[dtype])
    assert_near(case.run(tile, 1, torch.float32)[0], case.exact, TO_EXACT[torch.float32])


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_with_a_scale_for_a_group_of_columns(group_size: int, bits: int) -> None:
    case = Product(3, 66, 256, bits, torch.float16, group_size)
    result = case.run(tile_for(3, bits, group_size), 1, torch.float32)[0]
    assert_near(result, case.exact, TO_EXACT[torch.float32])


@pytest.mark.parametrize("bits", [4, pytest.param(8, marks=pytest.mark.slow)])
def test_parts_sum_to_the_same_product(bits: int) -> None:
    """Any number of parts, even more than there are turns, and the same bits every time."""
    case = Product(2, 70, 416, bits, torch.float16)
    tile = Tile(8, 64, 32, 2, 4)
    whole = case.run(tile, 1, torch.float32)
    for splits in (2, 3, 4, 8, 16):
        parts = case.run(tile, splits, torch.float32)
        assert torch.equal(parts, case.run(tile, splits, torch.float32))
        assert_near(parts.sum(0), whole[0], TO_EXACT[torch.float32])
        y = poisoned(2, 70, dtype=torch.float16)
        triton_matmul.launch_sum(parts, case.bias, True, y)
        exact = F.gelu(case.exact + case.bias.double(), approximate="tanh")
        assert_near(y, exact, TO_EXACT[torch.float16])


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_bias_and_gelu(dtype: torch.dtype, gelu: bool) -> None:
    case = Product(4, 72, 128, 4, dtype)
    exact = case.exact + case.bias.double()
    exact = F.gelu(exact, approximate="tanh") if gelu else exact
    result = case.run(tile_for(4, 4), 1, dtype, bias=True, gelu=gelu)[0]
    assert_near(result, exact, TO_EXACT[dtype])


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("bits", [4, 8])
def test_every_byte(bits: int, dtype: torch.dtype) -> None:
    """Row i holds byte i alone; x picks its columns one after the other: the integers come back exactly."""
    weight = torch.zeros(256, 16, dtype=torch.int8)
    weight[:, 5] = torch.arange(256, dtype=torch.uint8).view(torch.int8)
    num_columns = 16 * 8 // bits
    places = range(5 * 8 // bits, 6 * 8 // bits)
    x = torch.zeros(len(places), num_columns, dtype=dtype)
    for token, place in enumerate(places):
        x[token, place] = 1
    y = poisoned(1, len(places), 256, dtype=torch.float32)
    ones = torch.ones(256, dtype=torch.float32, device=DEVICE)
    packed = weight.to(DEVICE), ones, bits
    triton_matmul.launch_product(x.to(DEVICE), *packed, None, False, y, tile_for(len(places), bits), 1)
    expected = dequantize(weight, torch.ones(256), bits, torch.float32)[:, list(places)].T
    assert torch.equal(y[0].cpu(), expected)


@pytest.mark.parametrize(
    ("num_tokens", "bits"),
    [(1, 8), (20, 4), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((0, 4), (0, 8), (1, 4), (20, 8)))],
)
def test_the_operators(num_tokens: int, bits: int) -> None:
    """The interface selects tile and parts; x has several dimensions and need not be contiguous."""
    case = Product(num_tokens, 100, 2048, bits, torch.float16)
    x = case.x.T.contiguous().T[None]
    packed = case.weight, case.scale, bits
    parts = triton_matmul.linear_partials(x, *packed)
    assert parts.shape[0] in (2, 4, 8)
    assert parts.dtype == torch.float32
    result = triton_matmul.linear(x, *packed, case.bias, True)
    exact = F.gelu(case.exact + case.bias.double(), approximate="tanh")
    assert result.shape == (1, num_tokens, 100)
    if num_tokens:
        assert_near(parts.sum(0), case.exact, TO_EXACT[torch.float32])
        assert_near(result[0], exact, TO_EXACT[torch.float16])


def test_many_tokens_write_the_weight_out() -> None:
    """Then it is upstream's formula, to the last bit of the weight."""
    case = Product(MANY_TOKENS + 1, 16, 64, 4, torch.float16)
    expected = reference.linear(case.x, case.weight, case.scale, 4, case.bias)
    packed = case.weight, case.scale, 4
    assert_near(triton_matmul.linear(case.x, *packed, case.bias, False), expected, TO_EXACT[torch.float16])
    gelu = F.gelu(expected, approximate="tanh")
    assert_near(triton_matmul.linear(case.x, *packed, case.bias, True), gelu, TO_FORMULA[torch.float16])
    assert triton_matmul.linear_partials(case.x, *packed).shape == (1, MANY_TOKENS + 1, 16)


@pytest.mark.parametrize("group_size", [0, 32])
@pytest.mark.parametrize("scale_type", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("dtype", [*TYPES, torch.float32], ids=str)
@pytest.mark.parametrize("bits", [4, 8])
def test_extraction_is_the_formula_to_the_last_bit(
    bits: int, dtype: torch.dtype, scale_type: torch.dtype, group_size: int
) -> None:
    case = Product(1, 7, 1056 * 2 * 4 // bits, bits, torch.float16, group_size)
    scale = case.scale.to(scale_type) * 1e-3  # small enough for halves without all their digits
    y = poisoned(7, case.x.shape[1], dtype=dtype)
    extraction.launch_extract(case.weight, scale, bits, y)
    expected = dequantize(case.weight, scale, bits, dtype)
    if dtype == torch.bfloat16 and INTERPRETED:  # which cuts
        bits_apart = expected.view(torch.int16).int() - y.view(torch.int16)
        assert bits_apart.min() >= 0
        assert bits_apart.max() <= 1
    else:
        assert torch.equal(y, expected)


def test_compression_is_the_formula() -> None:
    integers = torch.randint(-8, 8, (33, 66), dtype=torch.int8).to(DEVICE)
    packed = torch.full((33, 33), 99, dtype=torch.int8, device=DEVICE)
    extraction.launch_compress(integers, packed)
    assert torch.equal(packed, pack_int4(integers))


def test_the_trial_before_the_first_use() -> None:
    assert availability.find_fault(DEVICE) == ""
    assert availability.is_available(DEVICE) == (not INTERPRETED)


@pytest.mark.parametrize("name", ["packed_product", "packed_partials", "packed_extract"])
def test_fake_forms_agree_with_the_operators(name: str) -> None:
    """And the schemas tell the truth: nothing is changed, nothing returned that was given."""
    case = Product(2, 16, 1024, 4, torch.float16)
    packed = case.weight, case.scale, 4
    arguments = {
        "packed_product": (case.x, *packed, case.bias, True),
        "packed_partials": (case.x, *packed),
        "packed_extract": (*packed, torch.bfloat16),
    }
    operator = getattr(torch.ops.chatglm, name).default
    torch.library.opcheck(operator, arguments[name], test_utils=("test_schema", "test_faketensor"))


@pytest.mark.skipif(INTERPRETED, reason="a card captures graphs")
@pytest.mark.parametrize("num_tokens", [1, MANY_TOKENS + 1])
def test_a_graph_holds_a_product(num_tokens: int) -> None:
    case = Product(num_tokens, 4096, 1024, 4, torch.float16)
    arguments = case.weight, case.scale, 4, case.bias, True
    kernels.linear(case.x, *arguments)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = kernels.linear(case.x, *arguments)
    case.x.normal_()
    graph.replay()
    assert torch.equal(y, kernels.linear(case.x, *arguments))
