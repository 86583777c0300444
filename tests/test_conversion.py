"""Folders made from folders: the same answers, packed or not; whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from chatglm import conversion
from chatglm.__main__ import main
from chatglm.checkpoints import list_tensors
from chatglm.conversion import convert_folder
from chatglm.errors import ChatGLMError, CheckpointError, InvalidRequestError
from chatglm.loading import load
from tests.folders import LAYOUTS, cut, make_folder


def logits(folder: Path, **options: Any) -> torch.Tensor:
    loaded = load(folder, device="cpu", dtype="fp32", **options)
    prompt = loaded.tokenizer("hello world", return_tensors="pt")["input_ids"]
    return loaded.model(prompt).logits.detach()


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
    assert "auto_map" not in json.loads((target / "config.json").read_text())
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
    assert stored["transformer.word_embeddings.weight"].dtype == torch.float16
    assert load(target, device="cpu").model.config.quantization_bit == bits
    with pytest.raises(InvalidRequestError, match="already"):
        convert_folder(target, tmp_path / "again", bits=4)
    assert main(["convert", str(target), str(tmp_path / "copy")]) == 0
    assert torch.equal(logits(tmp_path / "copy"), logits(target))


def test_an_existing_folder_is_left_alone(tmp_path: Path) -> None:
    make_folder(tmp_path / "source")
    (tmp_path / "target").mkdir()
    convert_folder(tmp_path / "source", tmp_path / "target")
    before = sorted(path.stat().st_mtime_ns for path in (tmp_path / "target").iterdir())
    with pytest.raises(ChatGLMError, match="exists already"):
        convert_folder(tmp_path / "source", tmp_path / "target")
    assert sorted(path.stat().st_mtime_ns for path in (tmp_path / "target").iterdir()) == before


def test_nothing_is_left_of_a_conversion_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_folder(tmp_path / "source")

    def full(*args: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(conversion.folder, "save_file", full)
    with pytest.raises(ChatGLMError, match="No space left"):
        convert_folder(tmp_path / "source", tmp_path / "target")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_damaged_source_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_folder(tmp_path / "source")
    cut(tmp_path / "source" / "pytorch_model-00003-of-00008.bin")
    with pytest.raises(CheckpointError, match="00003"):
        convert_folder(tmp_path / "source", tmp_path / "target")
    assert main(["convert", str(tmp_path / "source"), str(tmp_path / "target")]) == 1
    assert "00003" in capsys.readouterr().err
    assert not (tmp_path / "target").exists()
