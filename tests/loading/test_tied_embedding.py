"""The table of embedding and head: one where the files hold it twice, int8 where the native kernels are used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from chatglm import kernels
from chatglm.checkpoints import WeightReader, list_tensors
from chatglm.kernels.packing import dequantize, quantize_rows
from chatglm.loading import examine, load
from chatglm.loading.memory_plan import RESERVED_BYTES
from chatglm.loading.tied_embedding import head_copies, wants_packed_embedding
from chatglm.quantization.layers import QuantizedEmbedding, QuantizedLinear
from tests.folders import change_config, make_folder, random_tensors, tiny_config, write_weights
from tests.loading.folders import quantized_folder

EMBEDDING, HEAD = "transformer.word_embeddings.weight", "lm_head.weight"
CPU = torch.device("cpu")


@pytest.fixture(params=["native", "reference"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the kernels say they are; the decision must not need a compiler."""
    monkeypatch.setattr(kernels, "backend_name", lambda: request.param)
    return str(request.param)


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "backend_name", lambda: "native")


def load_cpu(folder: Path, **options: Any) -> Any:
    return load(folder, device="cpu", **{"dtype": "fp32", **options}).model


def stored_table(name: str = EMBEDDING, **changes: Any) -> Tensor:
    return random_tensors(tiny_config(), **changes)[name]


# --- one table or two ---


@pytest.mark.parametrize("layout", ["safetensors", "safetensors_shards", "bin_shards", "bin_old"])
def test_copies_are_found_in_any_layout(layout: str, tmp_path: Path) -> None:
    for name, is_copy in (("one", True), ("two", False)):
        make_folder(tmp_path / name, layout, tied=is_copy)
        report = examine(tmp_path / name)
        assert report.family is not None
        network = report.family.empty_network(report.config)
        with WeightReader(report.tensors) as reader:
            assert head_copies(network, report.tensors, reader) == (frozenset({HEAD}) if is_copy else frozenset())


def test_heads_that_are_no_copies(tmp_path: Path) -> None:
    """Of another type, with another last row, absent, or to be kept by the configuration."""
    make_folder(tmp_path)
    report = examine(tmp_path)
    assert report.family is not None
    network = report.family.empty_network(report.config)
    table = stored_table()
    last = table.clone()
    last[-1, -1] += 1
    for number, head in enumerate((table.float(), last, None)):
        folder = tmp_path / str(number)
        write_weights(folder, {EMBEDDING: table} if head is None else {EMBEDDING: table, HEAD: head}, "safetensors")
        stored = list_tensors(folder)
        with WeightReader(stored) as reader:
            assert head_copies(network, stored, reader) == frozenset()
    network.config.tie_word_embeddings = False
    with WeightReader(report.tensors) as reader:
        assert head_copies(network, report.tensors, reader) == frozenset()


@pytest.mark.parametrize("embedding_bits", [4, 8])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_packed_tables_are_shared_with_their_scales(embedding_bits: int, dtype: str, tmp_path: Path) -> None:
    model = load_cpu(quantized_folder(tmp_path, 4, embedding_bits=embedding_bits), dtype=dtype)
    assert model.lm_head.weight is model.transformer.word_embeddings.weight
    assert model.lm_head.weight_scale is model.transformer.word_embeddings.weight_scale
    assert model.config.tie_word_embeddings is True


def test_packed_tables_of_their_own_stay_two(tmp_path: Path) -> None:
    model = load_cpu(quantized_folder(tmp_path, 4, embedding_bits=8, tied=False))
    assert model.lm_head.weight is not model.transformer.word_embeddings.weight
    assert model.config.tie_word_embeddings is False
    for module, name in ((model.lm_head, HEAD), (model.transformer.word_embeddings, EMBEDDING)):
        assert torch.equal(module.weight, quantize_rows(stored_table(name, tied=False), 8)[0])


# --- int8 while reading ---


@pytest.mark.parametrize("layout", ["safetensors", "bin_shards", "bin_old"])
@pytest.mark.usefixtures("native")
def test_the_table_becomes_int8_as_if_quantized_at_once(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Published int4 folders have a half table, stored twice. Reading blocks of few rows must not show."""
    monkeypatch.setattr(WeightReader.blocks, "__defaults__", (1000,))
    said: list[str] = []
    model = load_cpu(quantized_folder(tmp_path, 4, layout), report=said.append)
    packed, scale = quantize_rows(stored_table(), 8)
    embedding, head = model.transformer.word_embeddings, model.lm_head
    assert isinstance(embedding, QuantizedEmbedding)
    assert isinstance(head, QuantizedLinear)
    assert torch.equal(embedding.weight, packed)
    assert torch.equal(embedding.weight_scale, scale.float())
    assert head.weight is embedding.weight
    assert head.weight_scale is embedding.weight_scale
    assert (head.bits, model.config.quantization_embedding_bit, model.config.quantization_bit) == (8, 8, 4)
    assert any("int4 on cpu (activations fp32, embedding int8): needs" in message for message in said)


@pytest.mark.usefixtures("native")
def test_quantized_once_for_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from chatglm.loading import fill as network

    quantized: list[int] = []

    def count(weight: Tensor, *options: Any) -> Any:
        quantized.append(weight.shape[0])
        return quantize_rows(weight, *options)

    monkeypatch.setattr(network, "quantize_rows", count)
    load_cpu(quantized_folder(tmp_path, 8))
    assert sum(quantized) == stored_table().shape[0]


@pytest.mark.usefixtures("native")
def test_a_head_of_its_own_becomes_int8_too(tmp_path: Path) -> None:
    model = load_cpu(quantized_folder(tmp_path, 8, tied=False))
    assert model.lm_head.weight is not model.transformer.word_embeddings.weight
    for module, name in ((model.lm_head, HEAD), (model.transformer.word_embeddings, EMBEDDING)):
        packed, scale = quantize_rows(stored_table(name, tied=False), 8)
        assert torch.equal(module.weight, packed)
        assert torch.equal(module.weight_scale, scale.float())


@pytest.mark.usefixtures("native")
def test_weights_that_are_quantized_on_the_way(tmp_path: Path) -> None:
    make_folder(tmp_path)
    assert isinstance(load_cpu(tmp_path, quantize=4).lm_head, QuantizedLinear)
    assert not isinstance(load_cpu(tmp_path).lm_head, QuantizedLinear)


def test_other_kernels_keep_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("reference", "torch", "exact"):
        monkeypatch.setattr(kernels, "backend_name", lambda name=name: name)
        said: list[str] = []
        model = load_cpu(quantized_folder(tmp_path, 4), report=said.append)
        assert torch.equal(model.lm_head.weight, stored_table().float())
        assert any("int4 on cpu (activations fp32): needs" in message for message in said)


@pytest.mark.usefixtures("native")
def test_when_the_table_is_left_alone(tmp_path: Path) -> None:
    report = examine(quantized_folder(tmp_path, 4))
    assert report.family is not None
    spec = report.family.spec(report.config)
    assert wants_packed_embedding(report.config, spec, report.tensors, CPU)
    assert not wants_packed_embedding(report.config, spec, report.tensors, torch.device("cuda:0"))
    report.config.quantization_embedding_bit = 4
    assert not wants_packed_embedding(report.config, spec, report.tensors, CPU)
    report.config.quantization_embedding_bit = report.config.quantization_bit = 0
    assert not wants_packed_embedding(report.config, spec, report.tensors, CPU)


def test_a_plain_network_does_not_even_ask_for_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To ask may compile them."""

    def explode() -> str:
        raise AssertionError("asked for kernels")

    monkeypatch.setattr(kernels, "backend_name", explode)
    make_folder(tmp_path)
    load_cpu(tmp_path, max_memory=RESERVED_BYTES + 10**6)


@pytest.mark.usefixtures("native")
def test_an_int8_table_is_near_the_half_one(tmp_path: Path) -> None:
    """Rounding moves a value by half a step of its row, and a little since a half weight is divided as half."""
    with kernels.use("reference"):
        packed = load_cpu(quantized_folder(tmp_path, 8))
    values = dequantize(packed.lm_head.weight, packed.lm_head.weight_scale, 8, torch.float32)
    step = packed.lm_head.weight_scale[:, None] / 2
    assert bool(((values - stored_table().float()).abs() <= 1.1 * step).all())


@pytest.mark.usefixtures("native")
def test_a_model_with_an_int8_table_survives_save_pretrained(tmp_path: Path) -> None:
    model = load_cpu(quantized_folder(tmp_path / "first", 4))
    model.save_pretrained(tmp_path / "second")
    for name in ("ice_text.model", "tokenizer_config.json"):
        (tmp_path / "second" / name).write_bytes((tmp_path / "first" / name).read_bytes())
    change_config(tmp_path / "second", model_type="chatglm")
    again = load_cpu(tmp_path / "second")
    assert again.config.quantization_embedding_bit == 8
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)


# --- types and memory ---


def test_packed_weights_take_no_part_in_the_choice_of_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an int8 table, norms, biases and scales are all that is left to be float32."""
    from chatglm import devices

    folder = quantized_folder(tmp_path, 4, num_layers=4, hidden_size=64)
    model = load_cpu(folder)
    floats = sum(parameter.numel() for parameter in model.parameters() if parameter.dtype == torch.float32)
    monkeypatch.setattr(devices, "SMALL_MODEL_BYTES", 4 * floats)
    assert load_cpu(folder, dtype="auto").config.dtype == torch.bfloat16
    monkeypatch.setattr(devices, "SMALL_MODEL_BYTES", 4 * floats + 1)
    assert load_cpu(folder, dtype="auto").config.dtype == torch.float32


@pytest.mark.parametrize("layout", ["safetensors", "bin_shards"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("keys", [{}, {"embedding_bits": 8}, {"group_size": 32}])
def test_the_estimate_is_what_is_taken(
    keys: dict[str, Any], dtype: str, layout: str, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from chatglm.loading import memory_estimate

    needs = []
    monkeypatch.setattr(memory_estimate, "available_memory", lambda device: None)
    monkeypatch.setattr(memory_estimate, "memory_message", lambda need, *others: needs.append(need) or "")
    folder = quantized_folder(tmp_path, 4, layout, num_layers=3, hidden_size=64, inner_hidden_size=128, **keys)
    model = load_cpu(folder, dtype=dtype)
    assert needs[0].weights_bytes == sum(parameter.nbytes for parameter in model.parameters())
    item_bytes = 2 if backend == "native" or dtype != "fp32" else 4
    assert needs[0].cache_bytes == 2 * 3 * 64 * 64 * item_bytes
