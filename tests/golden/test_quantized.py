"""INT8/INT4 against the original: one layer, whole models, their folders."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from chatglm import ChatGLMForConditionalGeneration, kernels
from chatglm.kernels.packing import dequantize
from chatglm.loading import load
from chatglm.quantization.layers import QuantizedLinear
from tests.folders import change_config, write_tokenizer, write_weights
from tests.golden.cases import GOLDEN, assert_close, build, tensors

FOLDER = "chatglm_v1/quantized_model"


@pytest.fixture(autouse=True)
def _reference_kernel() -> Iterator[None]:
    """The numbers are those of plain dequantizing; the fast kernels have bounds of their own."""
    with kernels.use("reference"):
        yield


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("kind", "dtype"), [("cpu", torch.float32), ("half", torch.float16)])
@pytest.mark.parametrize("case", ["linear_24x32", "linear_8x10"])
def test_linear(case: str, kind: str, dtype: torch.dtype, bits: int) -> None:
    golden = tensors("chatglm_v1/quantized_linear", case)
    linear = nn.Linear(golden["weight"].shape[1], golden["weight"].shape[0])
    linear.weight.data, linear.bias.data = golden["weight"], golden["bias"]
    quantized = QuantizedLinear.of(linear.to(dtype), bits)
    prefix = f"{kind}_int{bits}."
    assert torch.equal(quantized.weight, golden[prefix + "weight"])
    torch.testing.assert_close(quantized.weight_scale.data, golden[prefix + "weight_scale"], rtol=1.2e-7, atol=0)
    dequantized = dequantize(quantized.weight, quantized.weight_scale, bits, dtype)
    torch.testing.assert_close(dequantized, golden[prefix + "dequantised"], rtol=2.4e-7, atol=0)
    output = quantized(golden["x"].to(dtype))
    if dtype == torch.float32:
        assert_close(output.detach(), golden[prefix + "out"])
    else:
        torch.testing.assert_close(output.detach(), golden[prefix + "out"], rtol=4e-3, atol=4e-3)


@pytest.mark.parametrize("bits", [4, 8])
def test_model(bits: int) -> None:
    golden = tensors(FOLDER, f"int{bits}")
    model = build(FOLDER)
    assert_close(model(golden["input_ids"]).logits.detach(), golden["logits_unquantised"])
    assert model.quantize(bits) is model
    for name, tensor in model.state_dict().items():
        if f"state.{name}" in golden:
            torch.testing.assert_close(tensor, golden[f"state.{name}"], rtol=1.2e-7, atol=0)
    assert sum(name.endswith("weight_scale") for name in model.state_dict()) == 8
    assert_close(model(golden["input_ids"]).logits.detach(), golden["logits"])
    sequences = golden["greedy_sequences"]
    output = model.generate(golden["input_ids"], max_length=sequences.shape[1], do_sample=False, eos_token_id=10**6)
    assert torch.equal(output, sequences)


def test_quantizing_again_or_to_nothing_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    model = build(FOLDER)
    assert model.quantize(0) is model
    before = {name: tensor.clone() for name, tensor in model.quantize(8).state_dict().items()}
    assert model.quantize(4) is model
    assert "Already quantized to 8 bits" in caplog.text
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def make_quantized_folder(folder: Path, case: str) -> dict[str, torch.Tensor]:
    """A folder as published: weights and scales of the golden model, config.json that says so."""
    golden = tensors(FOLDER, case)
    packed = {name.removeprefix("state."): t for name, t in golden.items() if name.startswith("state.")}
    plain = tensors(FOLDER, "weights")
    write_weights(folder, {**plain, **packed}, "bin")
    (folder / "config.json").write_text((GOLDEN / FOLDER / "config.json").read_text())
    change_config(
        folder,
        quantization_bit=8 if case == "int8" else 4,
        quantization_embeddings=case.endswith("qe"),
        model_type="chatglm",
    )
    return golden


@pytest.mark.parametrize("case", ["int8", "int4", "int4_qe"])
def test_published_folders_load(case: str, tmp_path: Path) -> None:
    """Through the library and through our own loader, in three types; the integers stay as they are stored."""
    golden = make_quantized_folder(tmp_path, case)
    for dtype, bound in ((torch.float32, None), (torch.bfloat16, 0.4), (torch.float16, 0.1)):
        model = ChatGLMForConditionalGeneration.from_pretrained(tmp_path, dtype=dtype)
        for name, tensor in model.state_dict().items():
            if f"state.{name}" in golden and tensor.dtype == torch.int8:
                assert torch.equal(tensor, golden[f"state.{name}"])
        logits = model(golden["input_ids"]).logits.detach()
        assert logits.dtype == dtype
        if bound is None:
            assert_close(logits, golden["logits"])
        else:
            assert float((logits.float() - golden["logits"]).abs().max()) <= bound
    if case == "int4_qe":
        assert model.lm_head.weight is model.transformer.word_embeddings.weight


@pytest.mark.parametrize("case", ["int8", "int4", "int4_qe"])
def test_save_and_load(case: str, tmp_path: Path) -> None:
    golden = make_quantized_folder(tmp_path / "published", case)
    model = ChatGLMForConditionalGeneration.from_pretrained(tmp_path / "published")
    model.save_pretrained(tmp_path / "saved")
    assert (
        json.loads((tmp_path / "saved" / "config.json").read_text())["quantization_bit"]
        == model.config.quantization_bit
    )
    again = ChatGLMForConditionalGeneration.from_pretrained(tmp_path / "saved")
    assert_close(again(golden["input_ids"]).logits.detach(), golden["logits"])


@pytest.mark.parametrize("case", ["int8", "int4", "int4_qe"])
def test_own_loader(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same folder with a tokenizer that fits by chance of its ids is not at hand, so only the network is loaded."""
    from chatglm.loading import examine
    from chatglm.loading.fill import fill_network

    golden = make_quantized_folder(tmp_path, case)
    report = examine(tmp_path, needs_tokenizer=False)
    assert report.is_healthy, report.render()
    network = report.family.empty_network(report.config)
    fill_network(network, report.tensors, dtype=torch.float32, device=torch.device("cpu"), prefix={})
    assert_close(network.eval()(golden["input_ids"]).detach(), golden["logits"])


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_quantize_while_loading_equals_quantizing_the_loaded_half_model(bits: int, dtype: str, tmp_path: Path) -> None:
    from tests.folders import make_folder

    make_folder(tmp_path, "bin_shards", dtype=torch.float16)
    write_tokenizer(tmp_path)
    model = load(tmp_path, device="cpu", dtype=dtype, quantize=bits).model
    reference = load(tmp_path, device="cpu", dtype="fp16").model.quantize(bits)
    for name, tensor in reference.state_dict().items():
        if tensor.dtype == torch.int8 or name.endswith("weight_scale"):
            assert torch.equal(model.state_dict()[name].to(tensor.dtype), tensor), name
    assert model.config.quantization_bit == bits
    assert model.dtype == {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    assert load(tmp_path, device="cpu", quantize=bits).model.chat is not None
