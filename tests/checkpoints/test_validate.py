"""Validation of model folders: every way one can be wrong, made for real, named with its file and its remedy."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from chatglm.__main__ import main
from chatglm.checkpoints.validate import ValidationReport
from chatglm.checkpoints.validate.expected_weights import expected_shapes
from chatglm.errors import (
    CheckpointError,
    DamagedFileError,
    MismatchError,
    MissingFileError,
    ModelNotFoundError,
    PointerFileError,
    UnsupportedModelError,
)
from chatglm.loading import examine, load
from chatglm.models import FAMILIES
from tests.folders import (
    LAYOUTS,
    TOKENIZER_CONFIG,
    change_config,
    cut,
    make_folder,
    make_pointer,
    random_tensors,
    tiny_config,
    tokenizer_bytes,
    write_config,
    write_tokenizer,
    write_weights,
)

GOLDEN = Path(__file__).parents[1] / "golden"
SHARD = "pytorch_model-00003-of-00008.bin"
EMBEDDING = "transformer.word_embeddings.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A healthy folder, in the layout of the published one."""
    make_folder(tmp_path / "model")
    return tmp_path / "model"


def only(report: ValidationReport, kind: type[CheckpointError], *words: str) -> None:
    """The report holds one error, of this kind; its sentence has these words and a remedy."""
    assert [type(finding.error) for finding in report.errors] == [kind], report.render()
    (finding,) = report.errors
    for word in words:
        assert word in f"{finding.problem} {finding.remedy}"
    assert finding.remedy
    with pytest.raises(kind, match=re.escape(finding.problem)):
        report.raise_first()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_healthy_folder(layout: str, tied: bool, tmp_path: Path) -> None:
    tensors = make_folder(tmp_path, layout, tied=tied)
    report = examine(tmp_path)
    assert report.findings == ()
    assert report.is_healthy
    assert report.family is FAMILIES[0]
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


# --- names and shapes of the published checkpoints ---


@pytest.mark.parametrize("name", ["chatglm-6b"])
def test_expected_tensors_are_those_of_the_published_checkpoint(name: str) -> None:
    """368 names: ours, and the 28 rotary tables that we compute."""
    layout = json.loads((GOLDEN / "checkpoint_layouts.json").read_text())[name]
    published: dict[str, tuple[int, ...]] = {}
    for key, (shape, _) in layout["keys_outside_layers_and_of_layer_0"].items():
        numbers = range(layout["layers"]) if ".layers.0." in key else range(1)
        published |= {key.replace(".layers.0.", f".layers.{number}."): tuple(shape) for number in numbers}
    assert len(published) == layout["number_of_keys"] == 368
    rotary = {key for key in published if key.endswith("rotary_emb.inv_freq")}
    assert len(rotary) == 28
    family = FAMILIES[0]
    ours = expected_shapes(family, family.config_class(vocab_size=130528))
    assert ours == {key: shape for key, shape in published.items() if key not in rotary}


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


# --- names and shapes ---


def rewrite(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    for path in folder.glob("pytorch_model*"):
        path.unlink()
    write_weights(folder, tensors, "bin_shards")


def test_missing_tensors(folder: Path) -> None:
    tensors = {name: t for name, t in random_tensors(tiny_config()).items() if "layers.1.mlp" not in name}
    rewrite(folder, tensors)
    only(
        examine(folder),
        MismatchError,
        str(folder),
        "4 tensors",
        "transformer.layers.1.mlp.dense_h_to_4h",
        "one download",
    )


def test_a_missing_embedding(folder: Path) -> None:
    tensors = random_tensors(tiny_config())
    del tensors[EMBEDDING]
    rewrite(folder, tensors)
    only(examine(folder), MismatchError, EMBEDDING, "missing")


def test_unexpected_tensors(folder: Path) -> None:
    rewrite(folder, random_tensors(tiny_config()) | {"score.weight": torch.ones(2)})
    only(examine(folder), MismatchError, "score.weight", "unknown", "pytorch_model-00008-of-00008.bin")


def test_fewer_layers_in_the_config_than_in_the_weights(folder: Path) -> None:
    change_config(folder, num_layers=1)
    only(examine(folder), MismatchError, "12 tensors", "transformer.layers.1.input_layernorm")


def test_wrong_shapes(folder: Path) -> None:
    change_config(folder, inner_hidden_size=96)
    only(examine(folder), MismatchError, "mlp.dense_h_to_4h.weight", "[64, 32]", "[96, 32]", SHARD[:14])


def test_another_width_altogether(folder: Path) -> None:
    change_config(folder, hidden_size=64)
    only(examine(folder), MismatchError, EMBEDDING, "config.json")


def test_an_index_and_shards_of_different_downloads(folder: Path) -> None:
    torch.save({"transformer.final_layernorm.weight": torch.ones(32)}, folder / SHARD)
    kinds = {type(finding.error) for finding in examine(folder).errors}
    assert kinds == {MismatchError}


# --- the two releases and their vocabularies ---


def real_sizes(**changes: Any) -> dict[str, Any]:
    """A config with a vocabulary of a published release, otherwise as small as can be."""
    return (
        tiny_config(
            hidden_size=8,
            inner_hidden_size=16,
            num_layers=1,
            num_attention_heads=2,
            vocab_size=130528,
        )
        | changes
    )


def test_new_config_old_weights(tmp_path: Path) -> None:
    config = real_sizes()
    write_config(tmp_path, config)
    write_tokenizer(tmp_path)
    write_weights(tmp_path, random_tensors(config | {"vocab_size": 150528}), "safetensors")
    only(
        examine(tmp_path),
        MismatchError,
        "model.safetensors",
        "150528 (the first release)",
        "config.json says a vocabulary of 130528 (version 1.1,",
        "one release",
    )


def test_old_config_new_tokenizer(folder: Path) -> None:
    change_config(folder, bos_token_id=150004, eos_token_id=150005)
    only(examine(folder), MismatchError, "ice_text.model", "bos_token_id", "150004", "one release")


def test_old_tokenizer_new_config(folder: Path) -> None:
    """A tokenizer whose ids begin at 20000 in front of an embedding without room for them."""
    (folder / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG | {"num_image_tokens": 20000}))
    only(examine(folder), MismatchError, "ice_text.model", "20", "config.json", "one release")


def test_missing_tokenizer_settings(folder: Path) -> None:
    """Without them a v1.1 tokenizer is taken for the first release's, whose ids are 20000 higher."""
    (folder / "tokenizer_config.json").unlink()
    only(examine(folder), MissingFileError, str(folder / "tokenizer_config.json"), "Download")


# --- P-Tuning, quantized and later families ---


def test_a_prefix_only_folder(tmp_path: Path) -> None:
    config = tiny_config(pre_seq_len=4)
    prefix = {name: t for name, t in random_tensors(config).items() if "prefix_encoder" in name}
    assert prefix
    write_config(tmp_path, config)
    write_weights(tmp_path, prefix, "bin")
    only(examine(tmp_path), MismatchError, str(tmp_path), f"--ptuning-checkpoint {tmp_path}", "--model")


def test_a_config_that_asks_for_a_prefix_without_one(folder: Path) -> None:
    change_config(folder, pre_seq_len=4)
    only(examine(folder), MissingFileError, "pre_seq_len 4", "--ptuning-checkpoint")
    assert examine(folder, prefix_elsewhere=True).is_healthy


def test_a_whole_model_with_its_prefix(tmp_path: Path) -> None:
    make_folder(tmp_path, pre_seq_len=4, prefix_projection=True)
    assert examine(tmp_path).is_healthy
    change_config(tmp_path, pre_seq_len=None)
    assert examine(tmp_path, prefix_elsewhere=True).is_healthy
    only(examine(tmp_path), MismatchError, "prefix_encoder")


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantized_folder(bits: int, tmp_path: Path) -> None:
    make_folder(tmp_path)
    model = load(tmp_path, device="cpu", wraps=True).model.quantize(bits)
    rewrite(tmp_path, dict(model.state_dict()))
    only(examine(tmp_path), MismatchError, "quantized", "of how many bits", str(tmp_path / "config.json"))
    change_config(tmp_path, quantization_bit=bits)
    assert examine(tmp_path).is_healthy
    change_config(tmp_path, quantization_bit=12 - bits)
    assert "shape" in examine(tmp_path).errors[0].problem


def test_a_quantized_config_with_plain_weights(folder: Path) -> None:
    change_config(folder, quantization_bit=8)
    only(
        examine(folder),
        MismatchError,
        "quantization_bit 8",
        str(folder / "config.json"),
        "Set quantization_bit to 0",
    )


def test_a_chatglm2_folder(folder: Path) -> None:
    change_config(folder, padded_vocab_size=65024, multi_query_attention=True)
    only(examine(folder), UnsupportedModelError, "ChatGLM2")


def test_chatglm2_weights_with_our_config(folder: Path) -> None:
    rewrite(folder, {"transformer.encoder.layers.0.input_layernorm.weight": torch.ones(8)})
    only(examine(folder), UnsupportedModelError, "ChatGLM2", str(folder))


def test_another_model_type(folder: Path) -> None:
    change_config(folder, model_type="llama")
    only(examine(folder), UnsupportedModelError, "llama")


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
