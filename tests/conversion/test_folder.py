"""Folders made from folders: the same answers, packed or not; whole or not at all."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from chatglm import ChatGLMForConditionalGeneration, kernels
from chatglm.__main__ import main
from chatglm.checkpoints import list_tensors
from chatglm.conversion import convert_folder, examined, make_plan, quantize_folder
from chatglm.conversion.report import QuantizationReport
from chatglm.errors import ChatGLMError, CheckpointError, InvalidRequestError
from chatglm.kernels.packing import dequantize, quantize_rows
from chatglm.loading import load
from tests.folders import LAYOUTS, cut, make_folder, random_tensors, tiny_config, write_weights

EMBEDDING, HEAD = "transformer.word_embeddings.weight", "lm_head.weight"


@pytest.fixture(autouse=True)
def _reference_kernel() -> Iterator[None]:
    with kernels.use("reference"):
        yield


def logits(folder: Path, **options: Any) -> torch.Tensor:
    loaded = load(folder, device="cpu", dtype="fp32", **options)
    return logits_of(loaded.model, loaded.tokenizer("hello world", return_tensors="pt")["input_ids"])


def logits_of(model: Any, prompt: torch.Tensor) -> torch.Tensor:
    return model(prompt).logits.detach()


def quantized(source: Path, target: Path, **how: Any) -> QuantizationReport:
    shard_bytes = how.pop("shard_bytes", 10**9)
    return quantize_folder(examined(source), target, make_plan(examined(source), **how), shard_bytes=shard_bytes)


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shard_bytes", [10**9, 20_000])
def test_convert_keeps_every_value(layout: str, shard_bytes: int, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    make_folder(source, layout)
    (source / "modeling_chatglm.py").write_text("raise SystemExit")
    (source / "MODEL_LICENSE").write_text("research")
    seen: list[tuple[int, int]] = []
    convert_folder(source, target, shard_bytes=shard_bytes, progress=lambda read, all_: seen.append((read, all_)))
    assert torch.equal(logits(target), logits(source))
    assert seen[-1][0] == seen[-1][1]
    names = {path.name for path in target.iterdir()}
    assert not [name for name in names if name.endswith((".bin", ".py", ".part"))]
    assert {"MODEL_LICENSE", "ice_text.model", "tokenizer_config.json", "config.json"} <= names
    assert ("model.safetensors" in names) == (shard_bytes == 10**9)
    assert "auto_map" not in config_of(target)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("bits", [4, 8])
def test_quantize_equals_quantizing_while_loading(
    bits: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    make_folder(source)
    assert main(["quantize", str(source), str(target), "--bits", str(bits)]) == 0
    assert str(target) in capsys.readouterr().out
    assert torch.equal(logits(target), logits(source, quantize=bits))
    stored = list_tensors(target)
    assert stored["transformer.layers.0.attention.dense.weight"].dtype == torch.int8
    assert stored[EMBEDDING].dtype == torch.float16
    assert load(target, device="cpu").model.config.quantization_bit == bits
    with pytest.raises(InvalidRequestError, match="already"):
        quantized(target, tmp_path / "again", bits=4)
    assert main(["convert", str(target), str(tmp_path / "copy")]) == 0
    assert torch.equal(logits(tmp_path / "copy"), logits(target))
    assert (tmp_path / "copy" / "quantization_report.json").exists()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16])
def test_groups_are_those_of_a_model_quantized_in_memory(bits: int, dtype: torch.dtype, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    make_folder(source, "bin_shards", dtype=dtype)
    report = quantized(source, target, bits=bits, group_size=32, shard_bytes=20_000)
    assert config_of(target)["quantization_group_size"] == 32
    model = load(source, device="cpu", dtype=dtype).model.quantize(bits, group_size=32)
    stored = load(target, device="cpu", dtype=dtype).model
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, stored.state_dict()[name]), name
    largest_error = {4: 0.12, 8: 0.01}[bits]
    assert len(report.layers) == 8
    assert all(0 < layer.weight < largest_error for layer in report.layers)


@pytest.mark.parametrize("embedding_bits", [4, 8])
@pytest.mark.parametrize("stored", ["both", "one", "different"])
def test_tables(stored: str, embedding_bits: int, tmp_path: Path) -> None:
    """Two equal tables, one for both, or a head of its own: packed, each is written, and equal ones are one again."""
    source, target = tmp_path / "source", tmp_path / "target"
    tensors = make_folder(source, "safetensors", tied=stored != "different")
    if stored == "one":
        del tensors[HEAD]
        write_weights(source, tensors, "safetensors")
    quantized(source, target, bits=4, embedding_bits=embedding_bits)
    names = list_tensors(target)
    assert names[HEAD].dtype == names[EMBEDDING].dtype == torch.int8
    assert config_of(target)["quantization_embeddings"] == (embedding_bits == 4)
    assert config_of(target)["quantization_embedding_bit"] == embedding_bits

    expected = load(source, device="cpu", dtype="fp32", quantize=4).model
    prompt = torch.tensor([[20, 30, expected.config.gmask_token_id, expected.config.bos_token_id, 40]])
    for name in {EMBEDDING, HEAD} & tensors.keys():
        table = expected.get_submodule(name.removesuffix(".weight")).weight
        table.data = dequantize(*quantize_rows(tensors[name], embedding_bits), embedding_bits, torch.float32)
    for model in (
        load(target, device="cpu", dtype="fp32").model,
        ChatGLMForConditionalGeneration.from_pretrained(target, dtype=torch.float32),
    ):
        torch.testing.assert_close(logits_of(model, prompt), logits_of(expected, prompt), atol=1e-5, rtol=1e-5)
        is_one = model.lm_head.weight is model.transformer.word_embeddings.weight
        assert is_one == (stored != "different")


@pytest.mark.parametrize("embedding_bits", [4, 8])
def test_only_the_table_of_a_quantized_folder(embedding_bits: int, tmp_path: Path) -> None:
    source, layers, both = tmp_path / "source", tmp_path / "layers", tmp_path / "both"
    make_folder(source)
    quantized(source, layers, bits=4, group_size=32)
    report = quantized(layers, both, embedding_bits=embedding_bits)
    assert {layer.name for layer in report.layers} == {EMBEDDING, HEAD}
    quantized(source, tmp_path / "at once", bits=4, group_size=32, embedding_bits=embedding_bits)
    assert torch.equal(logits(both), logits(tmp_path / "at once"))
    assert config_of(both) == config_of(tmp_path / "at once")
    for how in ({"embedding_bits": embedding_bits}, {"bits": 8, "embedding_bits": 8}, {}):
        with pytest.raises(InvalidRequestError, match="already"):
            make_plan(examined(both), **how)
    with pytest.raises(InvalidRequestError, match="already"):
        make_plan(examined(layers), bits=8, embedding_bits=8)


def test_a_prefix_stays_as_it_is(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    make_folder(source, pre_seq_len=4, prefix_projection=True)
    quantized(source, target, bits=8)
    assert torch.equal(logits(target), logits(source, quantize=8))


def test_an_existing_folder_is_left_alone(tmp_path: Path) -> None:
    make_folder(tmp_path / "source")
    (tmp_path / "target").mkdir()
    convert_folder(tmp_path / "source", tmp_path / "target")
    before = sorted(path.stat().st_mtime_ns for path in (tmp_path / "target").iterdir())
    with pytest.raises(ChatGLMError, match="exists already"):
        convert_folder(tmp_path / "source", tmp_path / "target")
    assert main(["quantize", str(tmp_path / "source"), str(tmp_path / "target")]) == 1
    assert sorted(path.stat().st_mtime_ns for path in (tmp_path / "target").iterdir()) == before


def test_files_can_be_read_by_whom_the_folder_is_open_to(tmp_path: Path) -> None:
    make_folder(tmp_path / "source")
    convert_folder(tmp_path / "source", tmp_path / "target")
    folder_mode = (tmp_path / "target").stat().st_mode
    assert (tmp_path / "target" / "model.safetensors").stat().st_mode & 0o666 == folder_mode & 0o666


@pytest.fixture
def _small_files() -> Iterator[None]:
    """No file may grow beyond 20 kB: the system refuses as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_nothing_is_left_of_a_conversion_that_fails(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    make_folder(tmp_path / "source")
    request.getfixturevalue("_small_files")
    with pytest.raises(ChatGLMError, match=r"target cannot be written: .*Is the disk full"):
        convert_folder(tmp_path / "source", tmp_path / "target")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_disk_without_room_is_named_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_folder(tmp_path / "source")
    size = sum(tensor.size_bytes for tensor in list_tensors(tmp_path / "source").values())
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=size // 2))
    with pytest.raises(ChatGLMError, match=r"only .* are free"):
        convert_folder(tmp_path / "source", tmp_path / "target")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    quantized(tmp_path / "source", tmp_path / "target", bits=4, embedding_bits=4)  # which needs a third


def test_a_damaged_source_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_folder(tmp_path / "source")
    cut(tmp_path / "source" / "pytorch_model-00003-of-00008.bin")
    with pytest.raises(CheckpointError, match="00003"):
        convert_folder(tmp_path / "source", tmp_path / "target")
    assert main(["convert", str(tmp_path / "source"), str(tmp_path / "target")]) == 1
    assert "00003" in capsys.readouterr().err
    assert not (tmp_path / "target").exists()


def test_room_that_is_asked_for_is_what_is_written(tmp_path: Path) -> None:
    """An estimate that is too small would let a disk run full after hours."""
    make_folder(tmp_path / "source")
    for number, how in enumerate(({"bits": 4}, {"bits": 8, "group_size": 32}, {"bits": 4, "embedding_bits": 8})):
        target = tmp_path / str(number)
        plan = make_plan(examined(tmp_path / "source"), **how)
        quantize_folder(examined(tmp_path / "source"), target, plan)
        written = sum(tensor.size_bytes for tensor in list_tensors(target).values())
        assert written <= plan.target_bytes <= 1.1 * written


def test_rows_that_do_not_divide_are_refused(tmp_path: Path) -> None:
    make_folder(tmp_path)
    for how, sentence in (({"bits": 4, "group_size": 64}, "32 columns"), ({"bits": 5}, "not 5")):
        with pytest.raises(InvalidRequestError, match=sentence):
            make_plan(examined(tmp_path), **how)
    odd = tiny_config(hidden_size=36, num_attention_heads=6, inner_hidden_size=33)
    write_weights(tmp_path, random_tensors(odd), "safetensors")
    (tmp_path / "config.json").write_text(json.dumps(odd))
    with pytest.raises(InvalidRequestError, match="33 columns cannot be packed"):
        make_plan(examined(tmp_path), bits=4)
    make_plan(examined(tmp_path), bits=8)
