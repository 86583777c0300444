"""The calls of a step on cards: on pretended ones by shapes and devices, on a real one against plain torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from chatglm import kernels
from chatglm.kernels import reference, step
from tests.kernels.triton.step_cases import BOUNDS, PagedCase, StoreCase

pytest.importorskip("triton")
ALPHA, EPS = 56**0.5, 1e-5


@pytest.fixture(params=["torch's operators", "kernels"])
def has_kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    """Fake tensors raise where the host asks for a number of theirs, and where two devices meet."""
    has_kernels = request.param == "kernels"
    monkeypatch.setattr(step, "is_available", lambda device: has_kernels and device.type == "cuda")
    with FakeTensorMode():
        yield has_kernels


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the functions of plain torch that were called."""
    names: list[str] = []

    def counted(name: str, plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*arguments: object) -> Tensor:
            names.append(name)
            return plain(*arguments)

        return call

    for name in ("rotate_and_store", "decode_attention", "residual_norm"):
        monkeypatch.setattr(reference, name, counted(name, getattr(reference, name)))
    return names


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("num_rows", [1, 40])
def test_the_host_reads_nothing(num_rows: int, dtype: torch.dtype, has_kernels: bool, calls: list[str]) -> None:
    """On the second card; results lie there too."""
    card = torch.device("cuda", 1)
    stores = [torch.empty(9, 4, 64, 32, dtype=torch.float16, device=card) for _ in range(2)]
    numbers = [torch.empty(*shape, dtype=torch.int32, device=card) for shape in ((num_rows, 5), (num_rows,))]
    qkv, wide = (torch.empty(num_rows, 3 * 128, dtype=dtype, device=card) for _ in range(2))
    tables = [torch.empty(num_rows, 32, dtype=dtype, device=card) for _ in range(2)]
    query = kernels.rotate_and_store(qkv, *tables, *stores, *numbers, 2)
    mixed = kernels.decode_attention(query, *stores, *numbers)
    partials = torch.empty(4, *wide.shape, device=card)
    row = torch.empty(wide.shape[1], dtype=dtype, device=card)
    whole = kernels.residual_norm(wide, qkv, ALPHA, row, row, EPS)
    summed = kernels.residual_norm(partials, qkv, ALPHA, row, row, EPS, row)
    assert query.shape == mixed.shape == (num_rows, 4, 32)
    assert whole.shape == summed.shape == wide.shape
    assert all(x.device == card and x.dtype is dtype for x in (query, mixed, whole, summed))
    assert bool(calls) != has_kernels


def test_what_kernels_do_not_take_goes_to_plain_torch(has_kernels: bool, calls: list[str]) -> None:
    wide = torch.empty(2, 16400, device="cuda:0")
    kernels.residual_norm(wide, wide, ALPHA, wide.select(0, 0), wide.select(0, 0), EPS)
    store = torch.empty(3, 1, 64, 264, device="cuda:0")
    numbers = [torch.empty(*shape, dtype=torch.int32, device="cuda:0") for shape in ((2, 5), (2,))]
    kernels.decode_attention(torch.empty(2, 1, 264, device="cuda:0"), store, store, *numbers)
    double = torch.empty(2, 8, dtype=torch.double, device="cuda:0")
    kernels.residual_norm(double, double, ALPHA, double.select(0, 0), double.select(0, 0), EPS)
    assert calls == ["residual_norm", "decode_attention", "residual_norm"]


def test_a_cpu_is_never_asked_for_a_kernel(calls: list[str]) -> None:
    case = StoreCase([3, 70])
    query = kernels.rotate_and_store(
        case.qkv, *case.tables, case.keys, case.values, case.table, case.lengths, case.parts
    )
    kernels.decode_attention(query, case.keys, case.values, case.table, case.lengths)
    kernels.residual_norm(case.qkv, case.qkv, ALPHA, case.qkv[0], case.qkv[1], EPS)
    assert calls == ["rotate_and_store", "decode_attention", "residual_norm"]


def test_torch_is_told_that_the_stores_change() -> None:
    """What replays or reorders calls must know."""
    from chatglm.kernels.triton import triton_attention, triton_norm, triton_rotary

    for module, changed in ((triton_rotary, {"keys", "values"}), (triton_attention, set()), (triton_norm, set())):
        arguments = module.operator._opoverload._schema.arguments
        assert {one.name for one in arguments if one.alias_info and one.alias_info.is_write} == changed


# --- on a card ---


def step_of(case: StoreCase, weight: Tensor, bias: Tensor) -> Tensor:
    """All three calls after one another: [B, C]."""
    stores = case.keys, case.values, case.table, case.lengths
    query = kernels.rotate_and_store(case.qkv, *case.tables, *stores, case.parts)
    mixed = kernels.decode_attention(query, *stores).flatten(1)
    return kernels.residual_norm(mixed, query.flatten(1), ALPHA, weight, bias, EPS)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
def test_a_card_agrees_with_plain_torch(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    case = StoreCase([1, 64, 65, 1000, 2048], 32, 128, dtype, device="cuda")
    weight, bias = torch.randn(2, 4096, device="cuda").to(dtype)
    stores = case.keys.clone(), case.values.clone()
    result = step_of(case, weight, bias)
    changed = case.keys, case.values
    case.keys, case.values = stores
    monkeypatch.setattr(step, "is_available", lambda device: False)
    plain = step_of(case, weight, bias)
    torch.testing.assert_close(result, plain, atol=16 * BOUNDS[dtype], rtol=16 * BOUNDS[dtype])
    for one, other in zip(changed, stores, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6, equal_nan=True)


@pytest.mark.gpu
def test_a_graph_follows_its_lengths() -> None:
    """Captured once, replayed after every length has grown."""
    case = StoreCase([5, 120, 124, 600], 32, 128, torch.float16, device="cuda")
    case.keys.nan_to_num_(), case.values.nan_to_num_()
    weight, bias = torch.randn(2, 4096, device="cuda").half()
    step_of(case, weight, bias)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step_of(case, weight, bias)
    for _ in range(3):
        case.lengths += 1
        case.qkv.copy_(torch.randn_like(case.qkv))
        graph.replay()
        captured = result.clone()
        assert torch.equal(step_of(case, weight, bias), captured)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_row_alone_is_the_same_to_the_bit_on_a_card(dtype: torch.dtype) -> None:
    case = PagedCase([1, 64, 500, 1000, 2048] * 20, 32, 128, dtype, device="cuda")
    together = kernels.decode_attention(case.query, case.keys, case.values, case.table, case.lengths)
    for number in range(5):
        one = case.row(number)
        assert torch.equal(
            kernels.decode_attention(one.query, one.keys, one.values, one.table, one.lengths)[0], together[number]
        )


@pytest.mark.gpu
def test_the_operators_keep_torchs_rules() -> None:
    from chatglm.kernels.triton import triton_attention, triton_norm, triton_rotary

    case = StoreCase([5, 130], 4, 64, torch.float16, device="cuda")
    case.keys.nan_to_num_(), case.values.nan_to_num_()
    stores = case.keys, case.values, case.table, case.lengths
    torch.library.opcheck(triton_rotary.operator, (case.qkv, *case.tables, *stores, 2))
    torch.library.opcheck(triton_attention.operator, (case.query, *stores))
    torch.library.opcheck(triton_norm.operator, (case.qkv, case.qkv, ALPHA, case.qkv[0], case.qkv[1], EPS, None))
