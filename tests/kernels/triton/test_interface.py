"""Who multiplies: on a card the kernels, elsewhere and for everything they do not take what did before."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from chatglm import kernels
from chatglm.kernels import dispatch, reference
from chatglm.kernels import triton as gpu
from chatglm.kernels.packing import dequantize, pack_int4
from chatglm.kernels.triton import availability, cpm, weight_extraction
from chatglm.kernels.triton.matmul_tiles import MANY_TOKENS
from chatglm.quantization.layers import QuantizedLinear
from tests.kernels.cases import random_product

CARD = torch.device("cuda", 0)
CPU = torch.device("cpu")


@pytest.fixture
def no_answers() -> Iterator[None]:
    before = dict(availability._answers)
    availability._answers.clear()
    yield
    availability._answers.clear()
    availability._answers.update(before)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch, no_answers: None) -> None:
    """Torch says that there is a Hopper card."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))


def test_a_processor_is_answered_without_asking_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*_: object) -> None:
        raise AssertionError("a driver was asked")

    for name in ("is_available", "current_device", "get_device_capability", "device_count"):
        monkeypatch.setattr(torch.cuda, name, asked)
    for device in (CPU, torch.device("mps"), torch.device("meta")):
        assert not availability.is_available(device)
        assert not cpm.is_available(device)
    case = random_product(2, 8, 64, 4)
    with dispatch.use("reference"):
        kernels.linear(case.x, *case.arguments)


@pytest.mark.slow
def test_products_work_where_triton_cannot_be_imported() -> None:
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch, chatglm\n"
        "from chatglm import kernels\n"
        "from chatglm.kernels.triton import linear_partials, weight_extraction\n"
        "from chatglm.quantization.layers import QuantizedLinear\n"
        "layer = QuantizedLinear.of(torch.nn.Linear(64, 8), 4)\n"
        "assert layer(torch.randn(2, 64)).shape == (2, 8)\n"
        "assert weight_extraction.int4WeightExtractionHalf(layer.weight, layer.weight_scale).shape == (8, 64)\n"
        "assert linear_partials(torch.randn(2, 64), layer.weight, layer.weight_scale, 4).shape == (1, 2, 8)\n"
    )
    environment = {"CHATGLM_KERNEL": "reference", "PATH": ""}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_nothing_imports_triton_before_a_card_is_there() -> None:
    code = (
        "import sys, torch\n"
        "from chatglm import kernels\n"
        "kernels.linear(torch.ones(1, 4), torch.ones(2, 4, dtype=torch.int8), torch.ones(2), 8)\n"
        "sys.exit('triton' in sys.modules)\n"
    )
    environment = {"CHATGLM_KERNEL": "reference"}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0


def test_without_cuda_the_answer_is_no(monkeypatch: pytest.MonkeyPatch, no_answers: None) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not availability.is_available(CARD)


def test_the_reference_is_for_cards_too(monkeypatch: pytest.MonkeyPatch, driver: None) -> None:
    """By the variable, before anything is chosen, or by a choice made since."""
    monkeypatch.setattr(availability, "find_fault", lambda device: "")
    monkeypatch.setattr(dispatch._State, "backend", None)
    monkeypatch.setenv(dispatch.VARIABLE, "reference")
    assert not availability.is_available(CARD)
    monkeypatch.delenv(dispatch.VARIABLE)
    assert availability.is_available(CARD)
    with dispatch.use("reference"):
        assert not availability.is_available(CARD)


@pytest.mark.usefixtures("driver")
class TestTrial:
    """A card is believed when a small product came out right, and asked once."""

    def test_right(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[torch.device] = []
        monkeypatch.setattr(availability, "find_fault", lambda device: asked.append(device) or "")
        assert availability.is_available(CARD)
        assert availability.is_available(CARD)
        assert asked == [CARD]

    def test_wrong(self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
        monkeypatch.setattr(availability, "find_fault", lambda device: "a product is wrong")
        assert not availability.is_available(CARD)
        assert not availability.is_available(CARD)
        assert [record.message.count("a product is wrong") for record in caplog.records] == [1]

    def test_no_compiler(self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
        def fail(device: torch.device) -> str:
            raise RuntimeError("Failed to find C compiler")

        monkeypatch.setattr(availability, "find_fault", fail)
        assert not availability.is_available(CARD)
        assert "C compiler" in caplog.text

    def test_no_triton(self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
        # Whether or not another test has had it imported.
        monkeypatch.setitem(sys.modules, "chatglm.kernels.triton.triton_matmul", None)
        monkeypatch.delattr(gpu, "triton_matmul", raising=False)
        assert not availability.is_available(CARD)
        assert not caplog.records

    def test_an_old_card(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
        monkeypatch.setattr(availability, "find_fault", lambda device: "")
        assert not availability.is_available(CARD)


@pytest.fixture
def fake_card(monkeypatch: pytest.MonkeyPatch, no_answers: None) -> Iterator[None]:
    """A card of fake tensors, which has the kernels."""
    pytest.importorskip("triton")
    monkeypatch.setitem(availability._answers, 0, True)
    with FakeTensorMode():
        yield


@pytest.mark.usefixtures("fake_card")
class TestFakeCard:
    """Shapes and types follow without data; a kernel that ran would fail, for there is none."""

    def tensors(self, num_tokens: int, dtype: torch.dtype = torch.float16) -> tuple[torch.Tensor, ...]:
        x = torch.empty(1, num_tokens, 4096, dtype=dtype, device=CARD)
        weight = torch.empty(4096, 2048, dtype=torch.int8, device=CARD)
        scale = torch.empty(4096, dtype=torch.float16, device=CARD)
        return x, weight, scale

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("num_tokens", [1, 64, MANY_TOKENS + 1])
    def test_products(self, num_tokens: int, dtype: torch.dtype) -> None:
        x, weight, scale = self.tensors(num_tokens, dtype)
        bias = torch.empty(4096, dtype=dtype, device=CARD)
        y = kernels.linear(x, weight, scale, 4, bias, gelu=True)
        assert (y.shape, y.dtype, y.device) == ((1, num_tokens, 4096), dtype, CARD)
        if num_tokens <= MANY_TOKENS:  # a torch without CUDA cannot change the type of its fake tensors
            parts = gpu.linear_partials(x, weight, scale, 4)
            assert (parts.shape, parts.dtype) == (({1: 4, 64: 8}[num_tokens], num_tokens, 4096), torch.float32)

    def test_a_layer_of_the_network(self) -> None:
        with torch.device(CARD):
            layer = QuantizedLinear(4096, 128, 8)
        with torch.no_grad():
            assert layer(self.tensors(3)[0]).shape == (1, 3, 128)

    def test_the_kernels_are_what_is_called(self) -> None:
        with torch.profiler.profile() as profile:
            kernels.linear(*self.tensors(1), 4)
        assert "chatglm::packed_product" in {event.key for event in profile.key_averages()}

    def test_float32_goes_to_the_reference(self, monkeypatch: pytest.MonkeyPatch) -> None:
        x, weight, scale = self.tensors(2, torch.float32)
        monkeypatch.setattr(reference, "linear", lambda x, *_: x * 2)
        assert kernels.linear(x, weight, scale, 4, gelu=True).shape == x.shape

    def test_extraction(self) -> None:
        _, weight, scale = self.tensors(1)
        assert weight_extraction.int4WeightExtractionFloat(weight, scale).shape == (4096, 4096)
        assert weight_extraction.int8WeightExtractionBFloat16(weight, scale).dtype == torch.bfloat16


@pytest.mark.parametrize("group_size", [0, 32])
def test_the_named_functions_on_a_processor(group_size: int) -> None:
    for bits in (4, 8):
        case = random_product(1, 6, 64, bits, group_size=group_size, half=True)
        for suffix, dtype in (("Float", torch.float32), ("Half", torch.float16), ("BFloat16", torch.bfloat16)):
            extract = getattr(weight_extraction, f"int{bits}WeightExtraction{suffix}")
            assert torch.equal(extract(case.weight, case.scale), dequantize(case.weight, case.scale, bits, dtype))
    integers = torch.randint(-8, 8, (4, 10), dtype=torch.int8)
    assert torch.equal(weight_extraction.int4WeightCompression(integers), pack_int4(integers))


@pytest.mark.parametrize("name", ["reference", "torch", "exact"])
def test_gelu_is_applied_by_every_kernel(name: str) -> None:
    case = random_product(3, 16, 64, 4, half=True)
    with dispatch.use(name):
        plain = kernels.linear(case.x, *case.arguments)
        assert torch.equal(kernels.linear(case.x, *case.arguments, gelu=True), F.gelu(plain, approximate="tanh"))
    assert torch.equal(
        gpu.linear(case.x, *case.arguments, gelu=True),
        F.gelu(reference.linear(case.x, *case.arguments), approximate="tanh"),
    )
    parts = gpu.linear_partials(case.x, *case.arguments[:3])
    assert torch.equal(parts, reference.linear(case.x, *case.arguments[:3], None)[None])


@pytest.mark.parametrize("bits", [4, 8])
def test_gradients_still_go_through_the_written_out_weight(bits: int) -> None:
    layer = QuantizedLinear.of(torch.nn.Linear(64, 24), bits)
    x = torch.randn(5, 64, requires_grad=True)
    layer(x).square().sum().backward()
    weight = dequantize(layer.weight, layer.weight_scale, bits, torch.float32)
    with torch.no_grad():
        expected = 2 * (x @ weight.T + layer.bias) @ weight
    torch.testing.assert_close(x.grad, expected)
    assert layer.bias is not None
    assert layer.bias.grad is not None
