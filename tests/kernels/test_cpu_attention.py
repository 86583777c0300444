"""Attention of one position and of prompts: against float64, to the bit where it stores, within its memory."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from chatglm import kernels
from chatglm.kernels import dispatch
from chatglm.kernels.cpu import cpu_attention
from chatglm.nn.rotary import head_tables, rotate

BOUND = 2e-6
ISAS = ("scalar", "avx2", "avx512")
WIDTHS = ((2, 1), (6, 1), (30, 1), (8, 1), (8, 2), (20, 2), (64, 2), (128, 1), (128, 2))  # D, parts


@pytest.fixture(scope="module")
def library() -> Any:
    native = dispatch.native_kernels()
    if native is None:
        pytest.skip("The native kernels cannot be compiled here.")
    return native.library


@pytest.fixture(params=range(3), ids=ISAS, scope="module")
def isa(request: pytest.FixtureRequest, library: Any) -> Iterator[int]:
    if request.param > library.chatglm_best_isa():
        pytest.skip(f"This processor has no {ISAS[request.param]}.")
    library.chatglm_use_isa(request.param)
    yield request.param
    library.chatglm_use_isa(2)


class Case:
    """Random storage, filled up to `length`, with the rest poisoned; and the inputs of a step."""

    def __init__(self, heads: int, width: int, parts: int, length: int, spare: int = 2, size: float = 1.0) -> None:
        generator = torch.Generator().manual_seed(1000 * length + 10 * width + heads)
        self.parts, self.length = parts, length
        self.bound = BOUND * (1 + size)  # float32 rounds scores in proportion to their size
        self.qkv = size * torch.randn(1, 1, heads * 3 * width, generator=generator)
        self.keys, self.values = torch.randn(2, 1, heads, length + 1 + spare, width, generator=generator).half()
        self.keys[:, :, length:], self.values[:, :, length:] = torch.nan, torch.nan
        positions = torch.randint(0, 2000, (1, 2, 1) if parts == 2 else (1, 1), generator=generator)
        self.tables = head_tables(positions, width, torch.float32)

    def run(self) -> Tensor:
        return kernels.attend_one(self.qkv, self.tables, self.keys, self.values, self.length, self.parts)

    def expected(self) -> tuple[Tensor, Tensor, Tensor]:
        """The result by float64 over the halves stored, and the storage as it must look, by torch's own rounding."""
        heads, width = self.keys.shape[1], self.keys.shape[3]
        query, key, value = self.qkv.view(1, heads, 1, 3 * width).chunk(3, dim=-1)
        query, key = rotate(query, self.tables, self.parts), rotate(key, self.tables, self.parts)
        keys, values = self.keys.clone(), self.values.clone()
        keys[:, :, self.length], values[:, :, self.length] = key[:, :, 0].half(), value[:, :, 0].half()
        seen = slice(0, self.length + 1)
        mixed = F.scaled_dot_product_attention(query.double(), keys[:, :, seen].double(), values[:, :, seen].double())
        return mixed.transpose(1, 2).flatten(2), keys, values

    def check(self) -> None:
        mixed, keys, values = self.expected()
        torch.testing.assert_close(self.run().double(), mixed, atol=self.bound, rtol=self.bound)
        torch.testing.assert_close(self.keys, keys, atol=0, rtol=0, equal_nan=True)
        torch.testing.assert_close(self.values, values, atol=0, rtol=0, equal_nan=True)


@given(
    heads=st.integers(1, 5),
    sizes=st.sampled_from(WIDTHS),
    length=st.integers(0, 300),
    spare=st.integers(0, 5),
    threads=st.integers(1, 3),
)
@settings(max_examples=60, deadline=None)
def test_equals_float64(isa: int, heads: int, sizes: tuple[int, int], length: int, spare: int, threads: int) -> None:
    """And stores exactly what the plain layers would round to half; other rows stay untouched."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        Case(heads, *sizes, length, spare).check()
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("length", [1022, 1023, 1024, 1025, 2047, 5000])
def test_long_contexts(isa: int, length: int) -> None:
    """Several blocks of positions, with the largest score in any of them."""
    Case(2, 64, 2, length).check()


@pytest.mark.parametrize("size", [30.0, 1000.0])
def test_sharp_and_flat_scores(isa: int, size: float) -> None:
    """Scores thousands apart: one position takes all, the others nothing, and nothing overflows."""
    case = Case(3, 128, 2, 1500, size=size)
    case.check()
    case.qkv.zero_()
    case.check()


class PromptCase:
    """Random storage of `length` positions with the rest poisoned, and the queries of a prompt."""

    def __init__(self, tokens: int, heads: int, width: int, length: int, spare: int = 2, size: float = 1.0) -> None:
        generator = torch.Generator().manual_seed(1000 * length + 10 * width + heads + tokens)
        self.length, self.bound = length, BOUND * (1 + size)
        self.qkv = size * torch.randn(1, tokens, heads * 3 * width, generator=generator)
        self.keys, self.values = torch.randn(2, 1, heads, length + spare, width, generator=generator).half()
        self.keys[:, :, length:], self.values[:, :, length:] = torch.nan, torch.nan

    def run(self) -> Tensor:
        return kernels.attend_prompt(self.qkv, self.keys, self.values, self.length)

    def check(self) -> None:
        heads, width = self.keys.shape[1], self.keys.shape[3]
        query = self.qkv.unflatten(2, (heads, 3 * width))[..., :width].transpose(1, 2).double()
        keys, values = self.keys[:, :, : self.length].double(), self.values[:, :, : self.length].double()
        mixed = F.scaled_dot_product_attention(query, keys, values).transpose(1, 2).flatten(2)
        torch.testing.assert_close(self.run().double(), mixed, atol=self.bound, rtol=self.bound)


@given(
    tokens=st.integers(1, 40),
    heads=st.integers(1, 5),
    width=st.sampled_from((2, 6, 30, 36, 64, 128)),
    length=st.integers(1, 100) | st.sampled_from((511, 512, 513, 1030)),
    spare=st.integers(0, 5),
    threads=st.integers(1, 3),
)
@settings(max_examples=60, deadline=None)
def test_a_prompt_equals_float64(
    isa: int, tokens: int, heads: int, width: int, length: int, spare: int, threads: int
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        PromptCase(tokens, heads, width, length, spare).check()
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("size", [30.0, 1000.0])
def test_sharp_and_flat_scores_of_a_prompt(isa: int, size: float) -> None:
    case = PromptCase(30, 3, 128, 1500, size=size)
    case.check()
    case.qkv.zero_()
    case.check()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf], ids=str)
def test_a_bad_query_spoils_its_own_result(isa: int, bad: float) -> None:
    case = PromptCase(20, 2, 64, 700)
    case.qkv[0, 13, 3] = bad
    is_finite = case.run().view(20, 2, 64).isfinite()
    assert not is_finite[13, 0].any()
    is_finite[13, 0] = True
    assert is_finite.all()


@pytest.mark.parametrize("spoilt", ["keys", "values"])
def test_a_bad_position_spoils_its_head(isa: int, spoilt: str) -> None:
    case = PromptCase(20, 2, 64, 700)
    getattr(case, spoilt)[0, 1, 600, 5] = torch.nan
    result = case.run().view(20, 2, 64)
    assert result[:, 0].isfinite().all()
    assert not result[:, 1].isfinite().all(dim=-1).any()


@pytest.mark.parametrize("width", [2, 30, 64, 128])
def test_a_prompt_reads_nothing_behind_the_end(isa: int, width: int) -> None:
    case = PromptCase(13, 1, width, 37, spare=0)
    before = case.run()
    guards = [GuardedPages(tensor) for tensor in (case.qkv, case.keys, case.values)]
    case.qkv, case.keys, case.values = (guard.tensor for guard in guards)
    assert torch.equal(case.run(), before)


def test_wrong_tensors_of_a_prompt_are_rejected(library: Any) -> None:
    for name, wrong in [
        ("qkv", torch.zeros(1, 4, 47)),
        ("qkv", torch.zeros(2, 4, 48)),
        ("qkv", torch.zeros(1, 4, 48, dtype=torch.float64)),
        ("qkv", torch.zeros(1, 48, 4).transpose(1, 2)),
        ("keys", torch.zeros(1, 2, 5, 8)),
        ("values", torch.zeros(1, 2, 4, 8).half()),
        ("length", 0),
        ("length", 6),
    ]:
        case = PromptCase(4, 2, 8, 3)
        case.run()
        setattr(case, name, wrong)
        with pytest.raises(ValueError, match="contiguous"):
            case.run()
    with pytest.raises(ValueError, match="equal widths"):
        PromptCase(2, 1, 514, 3).run()


def test_threads_change_nothing(library: Any) -> None:
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        results.append((Case(5, 128, 2, 333).run(), PromptCase(50, 5, 128, 600).run()))
    torch.set_num_threads(before)
    assert all(torch.equal(*pair) for result in results for pair in zip(result, results[0], strict=True))


def test_every_half(isa: int) -> None:
    """What is stored is rounded as torch rounds: every half, the middles between neighbours and what lies beside them,
    denormals, zeros of both signs, and what is too large, which becomes infinite. Alone, it is also the result."""
    halves = torch.arange(65536).to(torch.uint16).view(torch.float16).float()
    finite = halves[halves.isfinite()].sort().values
    middles = (finite[1:] + finite[:-1]) / 2
    beside = [middles.nextafter(torch.tensor(limit)) for limit in (-torch.inf, torch.inf)]
    others = torch.tensor([65519.99, 65520, 65535, 65536, 1e6, 3e38, 1e-30, 1e-45, 2**-25, 2**-25 * 1.0001])
    numbers = torch.cat((finite, middles, *beside, others, -others))
    width = 64
    value = F.pad(numbers, (0, -len(numbers) % width)).view(-1, width)
    heads = len(value)
    qkv = torch.cat((torch.zeros(heads, 2 * width), value), dim=1).view(1, 1, -1)
    keys, values = torch.zeros(2, 1, heads, 1, width, dtype=torch.float16)
    result = kernels.attend_one(qkv, (torch.ones(width), torch.zeros(width)), keys, values, 0, 2)
    assert torch.equal(values[0, :, 0].view(torch.int16), value.half().view(torch.int16))
    assert torch.equal(result.view(heads, width), value.half().float())


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 1e6], ids=str)
@pytest.mark.parametrize("part", range(3), ids=["query", "key", "value"])
def test_what_is_not_finite_shows(isa: int, bad: float, part: int) -> None:
    """Also a key or value too large for half. A query of 1e6 is no fault."""
    case = Case(2, 64, 2, 40)
    case.qkv.view(2, 3, 64)[1, part, 5] = bad
    result = case.run().view(2, 64)
    assert result[0].isfinite().all()
    assert result[1].isfinite().all() == (part == 0 and bad == 1e6)


def test_a_spoilt_position_shows(isa: int) -> None:
    case = Case(1, 64, 2, 2000)
    case.keys[0, 0, 3, 9] = torch.nan
    assert not case.run().isfinite().any()


@pytest.mark.parametrize("sizes", WIDTHS)
def test_reads_and_writes_nothing_behind_the_end(isa: int, sizes: tuple[int, int]) -> None:
    """Storage that ends with its page, before a page that cannot be touched."""
    width, parts = sizes
    case = Case(1, width, parts, 37, spare=0)
    mixed, _, _ = case.expected()
    with_guard = [GuardedPages(tensor) for tensor in (case.keys, case.values, case.qkv, *case.tables)]
    case.keys, case.values, case.qkv, *tables = (guard.tensor for guard in with_guard)
    case.tables = (tables[0], tables[1])
    torch.testing.assert_close(case.run().double(), mixed, atol=BOUND, rtol=BOUND)


class GuardedPages:
    """A copy of a tensor whose last byte is the last of a page, in front of a page that faults when it is touched."""

    def __init__(self, tensor: Tensor) -> None:
        size = tensor.numel() * tensor.element_size()
        room = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        self.pages = mmap.mmap(-1, room + mmap.PAGESIZE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self.pages))
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.mprotect(ctypes.c_void_p(start + room), mmap.PAGESIZE, 0) == 0
        flat = torch.frombuffer(self.pages, dtype=tensor.dtype, count=tensor.numel(), offset=room - size)
        self.tensor = flat.view(tensor.shape).copy_(tensor)


def test_wrong_tensors_are_rejected(library: Any) -> None:
    good = Case(2, 8, 2, 3)
    good.run()
    for name, wrong in [
        ("qkv", good.qkv[..., :-1]),
        ("qkv", good.qkv.double()),
        ("keys", good.keys.float()),
        ("keys", good.keys.transpose(2, 3).contiguous().transpose(2, 3)),
        ("values", good.values[:, :1]),
        ("length", 6),
        ("length", -1),
        ("parts", 3),
        ("tables", (good.tables[0], good.tables[1][..., :-1])),
    ]:
        case = Case(2, 8, 2, 3)
        setattr(case, name, wrong)
        with pytest.raises(ValueError, match="contiguous"):
            case.run()


class Swapped:
    """A library that takes two of its arguments for each other."""

    def __init__(self, library: Any, first: int, second: int) -> None:
        self.library, self.first, self.second = library, first, second
        self.chatglm_attend_prompt = library.chatglm_attend_prompt

    def chatglm_attend_one(self, *arguments: int) -> int:
        args = list(arguments)
        args[self.first], args[self.second] = args[self.second], args[self.first]
        return self.library.chatglm_attend_one(*args)


class Inexact:
    """A library that is a thousandth off in one number."""

    def __init__(self, library: Any, name: str) -> None:
        self.library, self.name = library, name

    def __getattr__(self, name: str) -> Any:
        function = getattr(self.library, name)
        return self.off(function) if name == self.name else function

    @staticmethod
    def off(function: Any) -> Any:
        def call(*arguments: int) -> int:
            status = function(*arguments)
            ctypes.c_float.from_address(arguments[0]).value += 1e-3
            return status

        return call


def test_the_self_test_sees_a_wrong_library(library: Any) -> None:
    assert cpu_attention.find_fault(library) == ""
    assert "key stored" in cpu_attention.find_fault(Swapped(library, 2, 3))
    assert "value stored" in cpu_attention.find_fault(Swapped(library, 4, 5))
    first = "attention, 1 heads of 2, 0 positions"
    assert cpu_attention.find_fault(Inexact(library, "chatglm_attend_one")) == first
    assert cpu_attention.find_fault(Inexact(library, "chatglm_attend_prompt")) == f"{first}, of a prompt"
