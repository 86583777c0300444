"""--mmap: weights used where they lie in the files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from chatglm.errors import DeviceError
from chatglm.loading import LoadedModel, load, memory_estimate
from chatglm.loading import fill as network
from chatglm.loading.fill import Filled, mapping_message
from chatglm.pipeline import load_pipeline
from tests.folders import make_folder
from tests.loading.folders import quantized_folder

KINDS = [("fp32", {"dtype": torch.float32}), ("fp16", {"dtype": torch.float16}), ("bf16", {"dtype": torch.bfloat16})]


def load_mapped(folder: Path, **options: Any) -> LoadedModel:
    return load(folder, device="cpu", **{"dtype": "fp32", **options}, mmap=True)


@pytest.fixture
def filled(monkeypatch: pytest.MonkeyPatch) -> list[Filled]:
    """What filling the networks of a test took."""
    results: list[Filled] = []
    fill = network.fill_network

    def remember(*args: Any, **options: Any) -> Filled:
        results.append(fill(*args, **options))
        return results[-1]

    monkeypatch.setattr("chatglm.loading.loader.fill_network", remember)
    return results


@pytest.mark.parametrize("layout", ["safetensors", "safetensors_shards", "bin", "bin_shards", "bin_old"])
@pytest.mark.parametrize(("name", "options"), KINDS)
def test_the_same_network(layout: str, name: str, options: dict[str, Any], tmp_path: Path) -> None:
    tensors = make_folder(tmp_path, layout, **options)
    mapped, copied = load_mapped(tmp_path, dtype=name).model, load(tmp_path, device="cpu", dtype=name).model
    for key, tensor in copied.state_dict().items():
        assert torch.equal(mapped.state_dict()[key], tensor)
        assert torch.equal(tensor, tensors[key])
    assert mapped.lm_head.weight is mapped.transformer.word_embeddings.weight


@pytest.mark.parametrize("layout", ["safetensors", "bin_shards"])
@pytest.mark.parametrize("bits", [4, 8])
def test_packed_weights_are_mapped_and_the_rest_is_converted(
    bits: int, layout: str, filled: list[Filled], tmp_path: Path
) -> None:
    said: list[str] = []
    folder = quantized_folder(tmp_path, bits, layout, embedding_bits=8, num_layers=3)
    model = load_mapped(folder, report=said.append).model
    packed = {name: tensor for name, tensor in model.state_dict().items() if tensor.dtype == torch.int8}
    shared = model.lm_head.weight.nbytes
    assert filled[0].num_mapped == sum(tensor.nbytes for tensor in packed.values()) - shared
    assert not any("--mmap" in sentence for sentence in said)
    with load_pipeline(folder, device="cpu", dtype="fp32", mmap=True) as pipe, load_pipeline(folder) as copied:
        options = {"max_new_tokens": 6, "min_new_tokens": 6, "temperature": 0}
        assert pipe.chat("hello", **options) == copied.chat("hello", **options)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_mapped_weights_lie_in_the_file(tmp_path: Path) -> None:
    make_folder(tmp_path, "safetensors", dtype=torch.float32)
    model = load_mapped(tmp_path).model
    address = model.transformer.layers[0].mlp.dense_h_to_4h.weight.data_ptr()
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        start, stop = (int(number, 16) for number in line.split()[0].split("-"))
        if start <= address < stop:
            assert line.endswith(str(tmp_path / "model.safetensors"))
            return
    raise AssertionError("no mapping holds this weight")


def test_the_file_is_never_written(tmp_path: Path) -> None:
    """Training changes the process's own copy."""
    make_folder(tmp_path, "safetensors", dtype=torch.float32)
    before = (tmp_path / "model.safetensors").read_bytes()
    model = load_mapped(tmp_path).model
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_the_files_may_vanish_or_be_replaced(tmp_path: Path) -> None:
    tensors = make_folder(tmp_path, "safetensors", dtype=torch.float32)
    model = load_mapped(tmp_path).model
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors").write_bytes(b"")
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, tensors[name])


def test_a_mapped_model_can_be_cast_and_saved(tmp_path: Path) -> None:
    tensors = make_folder(tmp_path / "model", "safetensors", dtype=torch.float32)
    model = load_mapped(tmp_path / "model").model
    model.save_pretrained(tmp_path / "copy")
    assert all(torch.equal(t, tensors[name].half()) for name, t in model.half().state_dict().items())


@pytest.mark.parametrize("options", [{}, {"quantize": 4}])
def test_little_gain_is_said(options: dict[str, Any], filled: list[Filled], tmp_path: Path) -> None:
    make_folder(tmp_path, "bin_shards")
    said: list[str] = []
    load_mapped(tmp_path, report=said.append, **options)
    assert filled[0].num_mapped < filled[0].num_read / 2
    assert f"python -m chatglm quantize {tmp_path}" in said[-1]


def test_when_gain_is_little(tmp_path: Path) -> None:
    assert mapping_message(tmp_path, Filled(100, 49))
    assert not mapping_message(tmp_path, Filled(100, 50))


def test_only_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatglm.loading.loader.choose_device", lambda name: torch.device("cuda:0"))
    with pytest.raises(DeviceError, match="--mmap is for the CPU"):
        load(tmp_path, mmap=True)


def test_no_address_space_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from chatglm.checkpoints import raw_file
    from chatglm.errors import OutOfMemoryError

    def fail(*args: Any, **options: Any) -> None:
        raise OSError(12, "Cannot allocate memory")

    make_folder(tmp_path, "safetensors")
    monkeypatch.setattr(raw_file.mmap, "mmap", fail)
    with pytest.raises(OutOfMemoryError, match="Memory ran out on cpu while loading"):
        load_mapped(tmp_path)
    assert memory_estimate.available_memory(torch.device("cpu"))
