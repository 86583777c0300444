"""chatglm.loading: every layout gives the same network, in bounded memory; every refusal says why."""

from __future__ import annotations

import gc
import json
import re
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.load_memory import ALLOWED_BYTES
from chatglm.errors import (
    DamagedFileError,
    DeviceError,
    MismatchError,
    MissingFileError,
    ModelNotFoundError,
    OutOfMemoryError,
    PointerFileError,
)
from chatglm.generation.config import chat_defaults
from chatglm.loading import LoadedModel, checked_folder, find_folder, load, loader, memory_estimate, sources
from chatglm.loading import fill as network
from chatglm.loading.prefix_checkpoint import find_prefix
from chatglm.models import FAMILIES
from tests.folders import (
    LAYOUTS,
    change_config,
    make_folder,
    make_pointer,
    random_tensors,
    tiny_config,
    write_config,
    write_tokenizer,
    write_weights,
)

SPEC = FAMILIES[0].spec(FAMILIES[0].config({}))
EMBEDDING, HEAD = "transformer.word_embeddings.weight", "lm_head.weight"
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the licence flag out of the tester's home."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("CHATGLM_CACHE", str(folder))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_folder(tmp_path / "model")
    return tmp_path / "model"


def load_cpu(model: Any, **options: Any) -> LoadedModel:
    return load(model, **{"device": "cpu", "dtype": "fp32", **options}, wraps=True)


def scores(model: Any) -> torch.Tensor:
    config = model.config
    ids = torch.tensor([[200, 201, 202, config.gmask_token_id, config.bos_token_id]])
    with torch.inference_mode():
        return model(ids).logits


def reference(config: dict[str, Any], tensors: dict[str, torch.Tensor], dtype: torch.dtype = torch.float32) -> Any:
    """The same network filled by torch's own load_state_dict."""
    family = FAMILIES[0]
    model = family.model_class(family.config_class.from_dict(config))
    model.load_state_dict({name: t for name, t in tensors.items() if "inv_freq" not in name})
    return model.to(dtype).eval()


# --- what is loaded ---


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_network(layout: str, tmp_path: Path) -> None:
    tensors = make_folder(tmp_path, layout)
    loaded = load_cpu(tmp_path)
    assert torch.equal(scores(loaded.model), scores(reference(tiny_config(), tensors)))
    assert not loaded.model.training
    assert not loaded.is_demo
    assert loaded.folder == tmp_path
    assert loaded.family is FAMILIES[0]
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
    assert torch.equal(scores(loaded.model), scores(reference(tiny_config(), tensors, dtype)))


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
    assert torch.equal(scores(load_cpu(tmp_path / "copy").model), scores(loaded.model))


def test_auto_type_on_a_cpu_is_float32_for_a_small_model(folder: Path) -> None:
    assert load(folder, device="cpu", wraps=True).model.dtype == torch.float32


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


# --- what is said on the way ---


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
    assert re.match(r"fp32 on cpu needs \d+ kB for the weights and up to \d+ kB for a conversation of 64 tok", said[0])


def test_fp16_on_a_cpu_is_said_to_be_slow(folder: Path) -> None:
    said: list[str] = []
    load_cpu(folder, dtype="fp16", report=said.append)
    assert any("slow" in sentence for sentence in said)


def test_the_licence_of_the_weights_is_shown_once(folder: Path, own_cache: Path) -> None:
    said: list[str] = []
    for _ in range(2):
        load_cpu(folder, report=said.append)
    assert said.count(sources.LICENCE_NOTICE) == 1
    assert (own_cache / sources.LICENCE_FLAG).exists()


def test_a_cache_that_cannot_be_written_is_no_error(folder: Path, own_cache: Path, monkeypatch: Any) -> None:
    (own_cache / "file").write_text("")
    monkeypatch.setenv("CHATGLM_CACHE", str(own_cache / "file" / "inside"))
    said: list[str] = []
    for _ in range(2):
        load_cpu(folder, report=said.append)
    assert said.count(sources.LICENCE_NOTICE) == 2


# --- the demo model ---


@pytest.fixture
def demo(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sources, "CHECKPOINT", folder)
    monkeypatch.setattr(loader, "CHECKPOINT", folder)
    return folder


@pytest.mark.parametrize("name", [None, "demo"])
def test_the_demo_is_the_default_and_has_no_licence_notice(name: str | None, demo: Path) -> None:
    said: list[str] = []
    loaded = load_cpu(name, report=said.append)
    assert loaded.is_demo
    assert loaded.folder == demo
    assert sources.LICENCE_NOTICE not in said


def test_an_installation_without_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "CHECKPOINT", tmp_path / "absent")
    with pytest.raises(ModelNotFoundError, match="demo model is absent"):
        load(wraps=True)


# --- refusals ---


def test_a_wrong_device_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(DeviceError):
        load(tmp_path / "absent", device="tpu", wraps=True)


def test_a_wrong_type(folder: Path) -> None:
    with pytest.raises(DeviceError, match="int8"):
        load(folder, dtype="int8", wraps=True)


def test_a_model_that_does_not_fit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_estimate, "available_memory", lambda device: 1000)
    with pytest.raises(OutOfMemoryError) as raised:
        load_cpu(folder)
    for word in (str(folder), "kB for the weights", "1 kB are free", "--dtype bf16"):
        assert word in str(raised.value)
    with pytest.raises(OutOfMemoryError, match="Close other programs"):
        load_cpu(folder, dtype="bf16")


def test_a_conversation_that_may_not_fit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need = sum(t.numel() * 4 for name, t in random_tensors(tiny_config()).items() if name != HEAD and "inv" not in name)
    monkeypatch.setattr(memory_estimate, "available_memory", lambda device: need)
    said: list[str] = []
    load_cpu(folder, report=said.append)
    assert "Long conversations may not fit; give a smaller --max-length." in said


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


# --- P-Tuning ---


def make_prefix(folder: Path, layout: str = "bin", **changes: Any) -> dict[str, torch.Tensor]:
    """A folder as P-Tuning training writes it: prefix weights in float32 and a config."""
    config = tiny_config(pre_seq_len=5, **changes)
    tensors = {n: t for n, t in random_tensors(config, torch.float32).items() if "prefix_encoder" in n}
    write_config(folder, config)
    write_weights(folder, tensors, layout)
    return tensors


@pytest.mark.parametrize("layout", ["bin", "safetensors"])
@pytest.mark.parametrize("projection", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_prefix_on_its_base(layout: str, projection: bool, dtype: torch.dtype, folder: Path, tmp_path: Path) -> None:
    prefix = make_prefix(tmp_path / "prefix", layout, prefix_projection=projection)
    model = load_cpu(folder, ptuning_checkpoint=tmp_path / "prefix", dtype=dtype).model
    assert (model.config.pre_seq_len, model.config.prefix_projection) == (5, projection)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    config = tiny_config(pre_seq_len=5, prefix_projection=projection)
    whole = reference(config, random_tensors(tiny_config()) | prefix, dtype)
    assert torch.equal(scores(model), scores(whole))
    assert not torch.equal(scores(model), scores(load_cpu(folder, dtype=dtype).model))


def test_a_prefix_file_itself(folder: Path, tmp_path: Path) -> None:
    make_prefix(tmp_path / "prefix")
    assert (
        load_cpu(folder, ptuning_checkpoint=str(tmp_path / "prefix" / "pytorch_model.bin")).model.config.pre_seq_len
        == 5
    )


def test_a_prefix_of_fully_saved_weights(folder: Path, tmp_path: Path) -> None:
    """Old versions of the training script saved the whole model; only its prefix is taken."""
    make_folder(tmp_path / "whole", pre_seq_len=3)
    stored = find_prefix(tmp_path / "whole")
    assert stored.pre_seq_len == 3
    assert all("prefix_encoder" in name for name in stored.read(SPEC))
    assert load_cpu(folder, ptuning_checkpoint=tmp_path / "whole").model.config.pre_seq_len == 3


def test_a_base_whose_config_already_asks_for_a_prefix(folder: Path, tmp_path: Path) -> None:
    change_config(folder, pre_seq_len=128)
    make_prefix(tmp_path / "prefix")
    assert load_cpu(folder, ptuning_checkpoint=tmp_path / "prefix").model.config.pre_seq_len == 5


@pytest.mark.parametrize("changes", [{"num_layers": 3}, {"num_layers": 3, "prefix_projection": True}])
def test_a_prefix_of_another_base(changes: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    make_prefix(tmp_path / "prefix", **changes)
    with pytest.raises(MismatchError, match="does not fit this base model") as raised:
        load_cpu(folder, ptuning_checkpoint=tmp_path / "prefix")
    for word in (str(tmp_path / "prefix"), "transformer.prefix_encoder.", "Give the base model"):
        assert word in str(raised.value)


def test_a_prefix_with_a_tensor_missing(folder: Path, tmp_path: Path) -> None:
    prefix = make_prefix(tmp_path / "prefix", prefix_projection=True)
    del prefix["transformer.prefix_encoder.trans.2.bias"]
    write_weights(tmp_path / "prefix", prefix, "bin")
    with pytest.raises(MismatchError, match=r"trans\.2\.bias is absent there"):
        load_cpu(folder, ptuning_checkpoint=tmp_path / "prefix")


def test_prefix_and_base_exchanged(folder: Path, tmp_path: Path) -> None:
    make_prefix(tmp_path / "prefix")
    with pytest.raises(MismatchError, match="--ptuning-checkpoint"):
        load_cpu(tmp_path / "prefix")
    with pytest.raises(MismatchError, match="holds no P-Tuning prefix"):
        load_cpu(folder, ptuning_checkpoint=folder)


def test_the_folder_above_the_prefix(folder: Path, tmp_path: Path) -> None:
    make_prefix(tmp_path / "output" / "checkpoint-3000")
    with pytest.raises(MismatchError, match="checkpoint-3000"):
        load_cpu(folder, ptuning_checkpoint=tmp_path / "output")


def test_no_such_prefix(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="There is no P-Tuning folder"):
        load_cpu(folder, ptuning_checkpoint=tmp_path / "absent")


# --- names ---


def test_a_folder_by_its_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.chdir(folder.parent)
    assert find_folder(folder) == find_folder(str(folder)) == folder
    assert find_folder("~/model") == folder
    assert find_folder("model") == Path("model")


@pytest.mark.parametrize("name", ["/absent/folder/deep", "absent", "./absent/x", "C:\\absent", "a/b/c"])
def test_a_path_that_is_not_there(name: str) -> None:
    with pytest.raises(ModelNotFoundError, match="There is no folder") as raised:
        find_folder(name)
    assert "hub id" in raised.value.remedy


Download = Callable[..., str]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[Download], None]:
    """Put a function in the place of the hub's download."""
    import huggingface_hub

    def replace(download: Download) -> None:
        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)

    return replace


def test_a_hub_model_in_the_local_cache_needs_no_network(folder: Path, hub: Callable[[Download], None]) -> None:
    def download(model_id: str, *, local_files_only: bool = False, **options: Any) -> str:
        assert local_files_only
        return str(folder)

    hub(download)
    assert find_folder("zai-org/chatglm-6b") == folder


def test_a_hub_model_is_downloaded_without_its_code(folder: Path, tmp_path: Path, hub: Any) -> None:
    """The cache may hold the tokenizer alone; then the rest is fetched."""
    (tmp_path / "part").mkdir()
    asked: list[dict[str, Any]] = []

    def download(model_id: str, *, local_files_only: bool = False, **options: Any) -> str:
        asked.append(options)
        return str(tmp_path / "part") if local_files_only else str(folder)

    hub(download)
    assert find_folder("zai-org/chatglm-6b") == folder
    assert not any(pattern.endswith(".py") for pattern in asked[1]["allow_patterns"])


def test_a_hub_model_without_a_network(hub: Callable[[Download], None]) -> None:
    def download(model_id: str, **options: Any) -> str:
        raise ConnectionError("Name or service not known")

    hub(download)
    with pytest.raises(ModelNotFoundError) as raised:
        load("zai-org/chatglm-6b", wraps=True)
    for word in ("zai-org/chatglm-6b", "cannot be fetched", "hf download zai-org/chatglm-6b --local-dir chatglm-6b"):
        assert word in str(raised.value)


def test_a_hub_model_that_does_not_exist(hub: Callable[[Download], None]) -> None:
    from huggingface_hub.errors import RepositoryNotFoundError

    class NotFound(RepositoryNotFoundError):
        def __init__(self) -> None:
            Exception.__init__(self, "404")

    def download(model_id: str, **options: Any) -> str:
        raise NotFound

    hub(download)
    with pytest.raises(ModelNotFoundError, match="no model zai-org/chatglm-7b on the hub"):
        find_folder("zai-org/chatglm-7b")


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
