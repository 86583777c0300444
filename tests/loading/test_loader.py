"""chatglm.loading: every layout gives the same network, in bounded memory; every error says why."""

from __future__ import annotations

import gc
import json
import re
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.load_memory import ALLOWED_BYTES
from chatglm import kernels
from chatglm.errors import (
    DamagedFileError,
    DeviceError,
    MismatchError,
    MissingFileError,
    OutOfMemoryError,
    PointerFileError,
)
from chatglm.generation.config import chat_defaults
from chatglm.loading import checked_folder, load, loader, memory_estimate
from chatglm.loading import fill as network
from chatglm.models import family_of
from chatglm.pipeline import load_pipeline
from tests.folders import (
    LAYOUTS,
    change_config,
    make_folder,
    make_pointer,
    random_tensors,
    tiny_config,
    write_tokenizer,
    write_weights,
)
from tests.loading.folders import load_cpu, logits, quantized_folder, reference

SPEC = family_of({"model_type": "chatglm"}).spec(family_of({"model_type": "chatglm"}).config({}))
EMBEDDING, HEAD = "transformer.word_embeddings.weight", "lm_head.weight"
ROOT = Path(__file__).parents[2]


# --- what is loaded ---


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_network(layout: str, tmp_path: Path) -> None:
    tensors = make_folder(tmp_path, layout)
    loaded = load_cpu(tmp_path)
    assert torch.equal(logits(loaded.model), logits(reference(tiny_config(), tensors)))
    assert not loaded.model.training
    assert not loaded.is_demo
    assert loaded.folder == tmp_path
    assert loaded.family is family_of({"model_type": "chatglm"})
    assert loaded.tokenizer.bos_token_id == loaded.model.config.bos_token_id
    for name, parameter in loaded.model.named_parameters():
        assert torch.equal(parameter, tensors[name].float())
        assert parameter.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", ["safetensors", "bin_shards"])
def test_every_type(layout: str, dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = make_folder(tmp_path, layout)
    loaded = load_cpu(tmp_path, dtype=dtype)
    assert loaded.model.dtype == loaded.model.config.dtype == dtype
    assert all(parameter.dtype == dtype for parameter in loaded.model.parameters())
    assert torch.equal(logits(loaded.model), logits(reference(tiny_config(), tensors, dtype)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_network_does_not_hang_on_the_files(layout: str, tmp_path: Path) -> None:
    """Values are copied out of the mapped files, also where the type stays the same."""
    tensors = make_folder(tmp_path, layout)
    loaded = load_cpu(tmp_path, dtype="fp16")
    for path in tmp_path.iterdir():
        path.write_bytes(bytes(path.stat().st_size))
    for name, parameter in loaded.model.named_parameters():
        assert torch.equal(parameter, tensors[name])


@pytest.mark.parametrize("layout", ["safetensors", "bin_shards", "bin"])
def test_equal_embeddings_become_one(layout: str, tmp_path: Path) -> None:
    make_folder(tmp_path, layout)
    model = load_cpu(tmp_path).model
    assert model.lm_head.weight is model.transformer.word_embeddings.weight
    assert model.config.tie_word_embeddings is True


@pytest.mark.parametrize("reverse", [False, True])
def test_different_embeddings_stay_two(reverse: bool, tmp_path: Path) -> None:
    """Whichever comes first in the files; only the last row differs."""
    tensors = make_folder(tmp_path)
    tensors[HEAD] = tensors[HEAD].clone()
    tensors[HEAD][-1, -1] += 1
    for path in tmp_path.glob("pytorch_model*"):
        path.unlink()
    names = sorted(tensors, reverse=reverse)
    write_weights(tmp_path, {name: tensors[name] for name in names}, "bin_shards")
    model = load_cpu(tmp_path).model
    assert model.lm_head.weight is not model.transformer.word_embeddings.weight
    assert model.config.tie_word_embeddings is False
    assert torch.equal(model.lm_head.weight, tensors[HEAD].float())
    assert torch.equal(model.transformer.word_embeddings.weight, tensors[EMBEDDING].float())


def test_equal_embeddings_stay_two_where_the_config_says_so(tmp_path: Path) -> None:
    make_folder(tmp_path, tie_word_embeddings=False)
    model = load_cpu(tmp_path).model
    assert model.lm_head.weight is not model.transformer.word_embeddings.weight
    assert torch.equal(model.lm_head.weight, model.transformer.word_embeddings.weight)


def test_an_absent_head_is_the_embedding(folder: Path) -> None:
    for path in folder.glob("pytorch_model*"):
        path.unlink()
    tensors = random_tensors(tiny_config())
    del tensors[HEAD]
    write_weights(folder, tensors, "bin_shards")
    model = load_cpu(folder).model
    assert model.lm_head.weight is model.transformer.word_embeddings.weight


def test_a_loaded_model_survives_save_pretrained(folder: Path, tmp_path: Path) -> None:
    loaded = load_cpu(folder)
    loaded.model.save_pretrained(tmp_path / "copy")
    write_tokenizer(tmp_path / "copy")
    assert torch.equal(logits(load_cpu(tmp_path / "copy").model), logits(loaded.model))


def test_auto_type_on_a_cpu_is_float32_for_a_small_model(folder: Path) -> None:
    assert load(folder, device="cpu").model.dtype == torch.float32


def test_computed_buffers_are_made_again() -> None:
    """On the meta device their values were lost; modules with `reset_buffers` compute them anew."""

    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.reset_buffers()

        def reset_buffers(self) -> None:
            self.register_buffer("values", torch.arange(3.0), persistent=False)

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.transformer, self.lm_head = nn.Module(), nn.Linear(2, 4, bias=False)
            self.transformer.word_embeddings, self.transformer.table = nn.Embedding(4, 2), Table()
            self.config = type("Config", (), {})()
            self.spec = SPEC

    with torch.device("meta"):
        made = Network()
    places = network._Places(made, torch.float32, lambda name: torch.device("cpu"))
    places.put_value("transformer.word_embeddings.weight", torch.ones(4, 2))
    places.finish(lambda name: False)
    assert torch.equal(made.transformer.table.values, torch.arange(3.0))


# --- what is reported ---


def test_progress_counts_bytes_up_to_the_end(folder: Path) -> None:
    steps_seen: list[tuple[int, int]] = []
    load_cpu(folder, progress=lambda done, total: steps_seen.append((done, total)))
    counts = [done for done, _ in steps_seen]
    assert counts == sorted(counts)
    (total,) = {total for _, total in steps_seen}
    assert counts[-1] == total
    assert total == sum(t.nbytes for name, t in random_tensors(tiny_config()).items() if "inv_freq" not in name)


def test_memory_is_stated_before_loading(folder: Path) -> None:
    said: list[str] = []
    load_cpu(folder, report=said.append, progress=lambda done, total: said.append("reading"))
    assert said.index("reading") > 0
    assert re.fullmatch(r"fp32 on cpu: needs \d+ kB, free [\d.]+ [GT]B\.", said[0])


@pytest.mark.parametrize(
    ("bits", "options", "precision"),
    [
        (0, {"dtype": "bf16"}, "bf16 on cpu"),
        (0, {"dtype": "fp16", "mmap": True}, "fp16 on cpu"),
        (0, {"quantize": 4}, "int4 on cpu (activations fp32)"),
        (0, {"quantize": 8, "dtype": "bf16"}, "int8 on cpu (activations bf16)"),
        (0, {"max_memory": "1G"}, "fp32 on cpu"),
        (4, {"dtype": "auto"}, "int4 on cpu (activations fp32)"),
        (8, {"dtype": "bf16", "max_memory": "1G"}, "int8 on cpu (activations bf16)"),
        (4, {"mmap": True, "quantize": 4}, "int4 on cpu (activations fp32)"),
    ],
)
def test_the_precision_is_that_which_runs(bits: int, options: dict[str, Any], precision: str, tmp_path: Path) -> None:
    if bits:
        quantized_folder(tmp_path, bits)
    else:
        make_folder(tmp_path)
    said: list[str] = []
    options = {"device": "cpu", "dtype": "fp32", **options}
    with kernels.use("reference"), load_pipeline(tmp_path, **options, report=said.append) as pipeline:
        assert pipeline.precision == precision
        assert any(message.startswith(f"{precision}: needs ") for message in said)


def test_fp16_on_a_cpu_is_said_to_be_slow(folder: Path) -> None:
    said: list[str] = []
    load_cpu(folder, dtype="fp16", report=said.append)
    assert any("slow" in sentence for sentence in said)


# --- errors ---


def test_a_wrong_device_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(DeviceError):
        load(tmp_path / "absent", device="tpu")


def test_a_wrong_type(folder: Path) -> None:
    with pytest.raises(DeviceError, match="int8"):
        load(folder, dtype="int8")


def test_a_model_that_does_not_fit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_estimate, "available_memory", lambda device: 1000)
    with pytest.raises(OutOfMemoryError) as raised:
        load_cpu(folder)
    for word in (str(folder), "fp32 on cpu: needs", "free 1 kB", "--dtype bf16", "--quantize 4"):
        assert word in str(raised.value)
    with pytest.raises(OutOfMemoryError, match="Close other programs"):
        load_cpu(folder, dtype="bf16")


def test_a_conversation_that_may_not_fit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need = sum(t.numel() * 4 for name, t in random_tensors(tiny_config()).items() if name != HEAD and "inv" not in name)
    monkeypatch.setattr(memory_estimate, "available_memory", lambda device: need)
    said: list[str] = []
    load_cpu(folder, report=said.append)
    assert any(message.startswith("Long conversations may not fit: their cache takes up to ") for message in said)


def test_unknown_memory_is_no_reason_to_refuse(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_estimate, "available_memory", lambda device: None)
    said: list[str] = []
    load_cpu(folder, report=said.append)
    assert "unknown" in said[0]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to get 9 bytes."
        ),
    ],
)
def test_memory_that_runs_out_while_loading(error: Exception, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(loader, "fill_network", fail)
    with pytest.raises(OutOfMemoryError, match="ran out on cpu") as raised:
        load_cpu(folder)
    assert str(folder) in str(raised.value)


def test_other_failures_keep_their_names(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(loader, "fill_network", fail)
    with pytest.raises(RuntimeError, match="a defect"):
        load_cpu(folder)


def test_a_failed_load_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard vanishes between the examination and the reading: the half-filled network goes, the settings stay."""
    made: list[weakref.ref[Any]] = []
    fill = loader.fill_network

    def remember(network: Any, *args: Any, **options: Any) -> None:
        made.append(weakref.ref(network))
        fill(network, *args, **options)

    monkeypatch.setattr(loader, "fill_network", remember)

    def vanish(done: int, total: int) -> None:
        (folder / "pytorch_model-00004-of-00008.bin").unlink(missing_ok=True)

    before = torch.get_default_dtype(), torch.get_default_device()
    with pytest.raises(MissingFileError, match=r"pytorch_model-00004-of-00008\.bin"):
        load_cpu(folder, progress=vanish)
    gc.collect()
    assert made[0]() is None
    assert (torch.get_default_dtype(), torch.get_default_device()) == before


def test_a_sick_folder_is_refused_with_all_its_problems_counted(folder: Path) -> None:
    for path in folder.glob("*.bin"):
        make_pointer(path)
    with pytest.raises(PointerFileError, match="7 more: python -m chatglm doctor"):
        load_cpu(folder)


def test_generation_settings_of_the_folder_are_the_defaults(folder: Path) -> None:
    """Our loader once ignored the file, and the demo model was sampled hot."""
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": True, "temperature": 0.25}))
    assert chat_defaults(load_cpu(folder).model)["temperature"] == 0.25
    (folder / "generation_config.json").write_text("{")
    with pytest.raises(DamagedFileError, match=r"generation_config\.json"):
        load_cpu(folder)
    (folder / "generation_config.json").unlink()
    assert chat_defaults(load_cpu(folder).model)["temperature"] == 0.95


def test_checked_folder(folder: Path) -> None:
    (folder / "ice_text.model").unlink()
    assert checked_folder(str(folder)) == folder
    change_config(folder, quantization_bit=4)
    with pytest.raises(MismatchError, match="quantization_bit"):
        checked_folder(folder)


# --- memory, measured ---


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("form", ["bin", "safetensors"])
def test_peak_memory_is_the_network(form: str) -> None:
    """About 300 MB in 4 shards, read in a fresh process."""
    size = ["--vocab-size", "20000", "--hidden-size", "1024", "--layers", "9", "--shards", "4"]
    command = [sys.executable, "-m", "benchmarks.load_memory", *size, "--format", form, "--dtypes", "fp16", "fp32"]
    output = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    summary = json.loads(output.splitlines()[-1])
    assert 250e6 < summary["file_bytes"] < 350e6
    for run in summary["runs"]:
        assert run["peak_bytes"] < run["model_bytes"] + ALLOWED_BYTES
