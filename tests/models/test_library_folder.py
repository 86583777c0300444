"""Folders through transformers' Auto classes: odd files that load, keys that are left out, code that is not run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer

import chatglm  # noqa: F401  (registers)
from chatglm.errors import ChatGLMError
from chatglm.loading import load
from chatglm.pipeline import load_pipeline
from tests.folders import change_config, make_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_folder(tmp_path / "model", "bin_shards")
    return tmp_path / "model"


def edit(path: Path, **keys: Any) -> None:
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps(content | keys), encoding="utf-8")


def assert_loads(folder: Path) -> Any:
    """By every way: the model of AutoModel has the weights that ours has."""
    expected = load(folder, device="cpu", dtype="fp32").model.state_dict()
    model = AutoModel.from_pretrained(folder, dtype=torch.float32)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in expected.items())
    assert AutoTokenizer.from_pretrained(folder).encode("hello")
    assert AutoConfig.from_pretrained(folder).hidden_size == 32
    assert Path(model.config.name_or_path) == folder
    with load_pipeline(folder) as pipe:
        assert pipe.chat("hello", max_new_tokens=2, temperature=0)
    return model


def test_byte_order_marks_in_every_file(folder: Path) -> None:
    edit(folder / "generation_config.json", top_k=7)
    edit(folder / "special_tokens_map.json", pad_token="<pad>")
    files = list(folder.glob("*.json"))
    assert len(files) == 5
    for path in files:
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert assert_loads(folder).generation_config.top_k == 7


def test_a_config_in_utf_16(folder: Path) -> None:
    """As PowerShell writes it."""
    path = folder / "config.json"
    path.write_text(path.read_text(encoding="utf-8"), encoding="utf-16")
    with load_pipeline(folder) as pipe:
        assert pipe.chat("hello", max_new_tokens=2)


def test_an_index_without_metadata(folder: Path) -> None:
    path = folder / "pytorch_model.bin.index.json"
    path.write_text(json.dumps({"weight_map": json.loads(path.read_text())["weight_map"]}))
    assert_loads(folder)


def test_keys_that_name_code_kernels_or_sizes_are_left_out(folder: Path) -> None:
    odd = {
        "auto_map": {"AutoModel": "modeling_chatglm.X", "AutoConfig": "somebody/else--x.Y"},
        "_attn_implementation": "somebody/kernel",
        "attn_implementation": "somebody/kernel",
        "_attn_implementation_internal": "somebody/kernel",
        "experts_implementation": "somebody/kernel",
        "quantization_config": {"quant_method": "gptq", "bits": 4},
        "custom_generate": "somebody/generate",
        "custom_pipelines": {"x": {"impl": "x.X"}},
        "num_labels": 10**12,
        "is_encoder_decoder": True,
        "per_layer_config": {"0": {"hidden_size": 7}},
        "rope_scaling": {"type": "x"},
        "forward": "x",
    }
    change_config(folder, **odd)
    edit(folder / "generation_config.json", custom_generate="somebody/x", compile_config={"backend": "x"}, top_k=9)
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_chatglm.X", None]})
    model = assert_loads(folder)
    assert not [key for key, value in odd.items() if vars(model.config).get(key) == value]
    assert model.config._attn_implementation in (None, "eager", "sdpa")
    assert not hasattr(model.generation_config, "custom_generate")
    assert model.generation_config.top_k == 9


def test_code_beside_the_weights_is_not_run(folder: Path, tmp_path: Path) -> None:
    """Also if somebody asks for it, as all of upstream's examples do."""
    edit(folder / "config.json", auto_map={f"Auto{name}": f"evil.{name}" for name in ("Config", "Model")})
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Tokenizer", None]})
    (folder / "custom_generate").mkdir()
    for path in (folder / "custom_generate" / "generate.py", folder / "evil.py"):
        path.write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\ndef generate(model, **_): return 1\n")
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    AutoConfig.from_pretrained(folder, trust_remote_code=True)
    assert model.generate(**tokenizer("hello", return_tensors="pt"), max_new_tokens=2).shape[0] == 1
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("file", "keys"),
    [
        ("config.json", {"torch_dtype": "nn"}),
        ("config.json", {"torch_dtype": 16}),
        ("config.json", {"num_layers": 10**9}),
        ("config.json", {"num_hidden_layers": 3}),
        ("config.json", {"use_cache": "yes"}),
        ("generation_config.json", {"temperature": "hot"}),
        ("generation_config.json", {"eos_token_id": {"a": 1}}),
        ("generation_config.json", {"do_sample": "yes"}),
        ("generation_config.json", {"temperature": float("inf")}),
    ],
    ids=str,
)
def test_wrong_values_are_named(file: str, keys: dict[str, Any], folder: Path) -> None:
    edit(folder / file, **keys)
    with pytest.raises(ChatGLMError, match=next(iter(keys))):
        AutoModel.from_pretrained(folder)


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_settings_of_gigabytes_are_not_read(file: str, folder: Path) -> None:
    os.truncate(folder / file, 2**32)
    for way in (load_pipeline, load, AutoTokenizer.from_pretrained):
        with pytest.raises(ChatGLMError, match=rf"{file} has 4,294,967,296 bytes"):
            way(folder)


@pytest.mark.parametrize(
    "keys",
    [
        {"num_image_tokens": 10**9},
        {"num_image_tokens": True},
        {"do_lower_case": "no"},
        {"bos_token": 5},
        {"pad_token": {"name": "<pad>"}},
        {"padding_side": "up"},
        {"model_max_length": "long"},
        {"added_tokens_decoder": {"x": 1}},
        {"additional_special_tokens": [1]},
    ],
    ids=str,
)
def test_wrong_values_of_a_tokenizer_are_named(keys: dict[str, Any], folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    edit(path, **keys)
    for way in (load_pipeline, load, AutoTokenizer.from_pretrained):
        with pytest.raises(ChatGLMError, match=rf"tokenizer_config\.json: {next(iter(keys))} is"):
            way(folder)


@pytest.mark.parametrize(
    ("file", "keys"),
    [
        ("special_tokens_map.json", {"pad_token": 1}),
        ("added_tokens.json", {"a": "b"}),
        ("tokenizer_config.json", {"encode": 1}),
    ],
)
def test_other_tokenizer_files_that_the_library_cannot_read(file: str, keys: dict[str, Any], folder: Path) -> None:
    edit(folder / file, **keys)
    with pytest.raises(ChatGLMError, match=r"tokenizer in .* cannot be read"):
        AutoTokenizer.from_pretrained(folder)
