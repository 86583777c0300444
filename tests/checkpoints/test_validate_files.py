"""Validation of a model folder's files, and the doctor command: each problem is named with its file and remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from chatglm.__main__ import main
from chatglm.errors import (
    DamagedFileError,
    MismatchError,
    MissingFileError,
    ModelNotFoundError,
    PointerFileError,
    UnsupportedModelError,
)
from chatglm.loading import examine
from chatglm.models import family_of
from tests.checkpoints.reports import only
from tests.folders import (
    LAYOUTS,
    change_config,
    cut,
    make_folder,
    make_pointer,
    random_tensors,
    tiny_config,
    tokenizer_bytes,
    write_weights,
)

SHARD = "pytorch_model-00003-of-00008.bin"


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_healthy_folder(layout: str, tied: bool, tmp_path: Path) -> None:
    tensors = make_folder(tmp_path, layout, tied=tied)
    report = examine(tmp_path)
    assert report.findings == ()
    assert report.is_healthy
    assert report.family is family_of({"model_type": "chatglm"})
    assert report.tensors.keys() == tensors.keys()
    assert report.tokenizer.vocab_size <= report.config.vocab_size
    assert report.render() == f"{tmp_path} can be loaded."
    report.raise_first()


def test_a_folder_with_one_table_for_both_embeddings(tmp_path: Path) -> None:
    make_folder(tmp_path)
    for path in tmp_path.glob("pytorch_model*"):
        path.unlink()
    tensors = random_tensors(tiny_config())
    del tensors["lm_head.weight"]
    write_weights(tmp_path, tensors, "bin_shards")
    assert examine(tmp_path).is_healthy


# --- files ---


def test_no_such_folder(tmp_path: Path) -> None:
    only(examine(tmp_path / "absent"), ModelNotFoundError, str(tmp_path / "absent"), "hf download")


def test_a_file_instead_of_a_folder(folder: Path) -> None:
    only(examine(folder / "config.json"), ModelNotFoundError, "is a file", str(folder))


def test_the_folder_above_the_model(folder: Path) -> None:
    only(examine(folder.parent), ModelNotFoundError, "config.json", f"Did you mean {folder}?")


def test_a_lora_adapter(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    only(examine(tmp_path), UnsupportedModelError, "LoRA", "base model")


def test_an_empty_folder(tmp_path: Path) -> None:
    only(examine(tmp_path), MissingFileError, "空的", "is empty", "hf download")
    (tmp_path / "README.md").touch()
    kinds = [type(finding.error) for finding in examine(tmp_path).errors]
    assert kinds == [MissingFileError] * 3  # config.json, weights, tokenizer


def test_unreadable_config(folder: Path) -> None:
    cut(folder / "config.json")
    only(examine(folder), DamagedFileError, str(folder / "config.json"), "JSON", "Download")


@pytest.mark.parametrize(
    "changes",
    [{"num_layers": "28"}, {"hidden_size": 0}, {"num_attention_heads": 5}, {"vocab_size": None, "num_layers": 2.5}],
)
def test_a_config_with_impossible_values(changes: dict[str, Any], folder: Path) -> None:
    change_config(folder, **changes)
    only(examine(folder), DamagedFileError, str(folder / "config.json"))


@pytest.mark.parametrize("name", ["config.json", SHARD, "ice_text.model", "tokenizer_config.json"])
def test_a_git_lfs_pointer(name: str, folder: Path) -> None:
    make_pointer(folder / name)
    only(examine(folder), PointerFileError, str(folder / name), "Git-LFS pointer", "git lfs pull")


def test_all_pointers_are_reported_not_only_the_first(folder: Path) -> None:
    pointers = [*folder.glob("*.bin"), folder / "ice_text.model"]
    for path in pointers:
        make_pointer(path)
    report = examine(folder)
    assert len(report.errors) == len(pointers) == 9
    text = report.render()
    assert all(str(path) in text for path in pointers)
    with pytest.raises(PointerFileError, match=r"\(8 more: python -m chatglm doctor "):
        report.raise_first()


def test_a_missing_shard(folder: Path) -> None:
    (folder / SHARD).unlink()
    only(examine(folder), MissingFileError, str(folder / SHARD), "Download")


def test_a_truncated_shard(folder: Path) -> None:
    cut(folder / SHARD)
    only(examine(folder), DamagedFileError, str(folder / SHARD), "cut short", "Download this file again")


def test_a_truncated_safetensors_file(tmp_path: Path) -> None:
    make_folder(tmp_path, "safetensors")
    cut(tmp_path / "model.safetensors", 0.99)
    only(examine(tmp_path), DamagedFileError, "model.safetensors", "cut short")


def test_a_missing_tokenizer(folder: Path) -> None:
    (folder / "ice_text.model").unlink()
    only(examine(folder), MissingFileError, str(folder / "ice_text.model"), "Download")
    assert examine(folder, needs_tokenizer=False).is_healthy


@pytest.mark.parametrize("content", [tokenizer_bytes()[:5000], b"nothing of the kind"])
def test_a_damaged_tokenizer(content: bytes, folder: Path) -> None:
    (folder / "ice_text.model").write_bytes(content)
    report = examine(folder)
    assert len(report.errors) == 1
    assert isinstance(report.errors[0].error, DamagedFileError | MismatchError)
    assert "ice_text.model" in report.errors[0].problem


# --- the command ---


def test_doctor_command_on_a_healthy_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(folder)]) == 0
    out = capsys.readouterr().out
    for word in ("Python 3.", "torch 2.", "transformers", "cpu: ", "parameters", "fp16: ", "of cache for 64 tokens"):
        assert word in out
    assert out.endswith(f"{folder} can be loaded.\n")


def test_doctor_command_on_a_sick_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / SHARD).unlink()
    make_pointer(folder / "ice_text.model")
    assert main(["doctor", str(folder)]) == 1
    out = capsys.readouterr().out
    assert f"ERROR: {folder / SHARD} is missing." in out
    assert "  -> Run `git lfs install`" in out
    assert out.endswith(f"{folder} cannot be loaded: 2 problem(s), see above.\n")


def test_doctor_command_on_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(tmp_path / "absent")]) == 1
    assert "There is no folder" in capsys.readouterr().out


def test_commands_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    for argv, code in ((["--help"], 0), ([], 2), (["unheard-of"], 2)):
        with pytest.raises(SystemExit) as exit_info:
            main(argv)
        assert exit_info.value.code == code
    assert "doctor" in capsys.readouterr().out


def test_an_error_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(argv: list[str]) -> int:
        raise ModelNotFoundError("There is no folder x.", "Make one.")

    monkeypatch.setattr("chatglm.cli.doctor.main", fail)
    assert main(["doctor"]) == 1
    assert capsys.readouterr().err == "There is no folder x. Make one.\n"


def test_an_interrupt_ends_quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(argv: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("chatglm.cli.doctor.main", interrupt)
    assert main(["doctor"]) == 130
