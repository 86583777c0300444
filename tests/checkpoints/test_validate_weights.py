"""Validation of a folder's weights against its config.json and tokenizer: each problem is named with its remedy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from chatglm.checkpoints.validate.expected_weights import expected_shapes
from chatglm.errors import (
    DamagedFileError,
    MismatchError,
    MissingFileError,
    UnsupportedModelError,
)
from chatglm.loading import examine, load
from chatglm.models import family_of
from tests.checkpoints.reports import only
from tests.folders import (
    TOKENIZER_CONFIG,
    change_config,
    make_folder,
    random_tensors,
    tiny_config,
    write_config,
    write_tokenizer,
    write_weights,
)

GOLDEN = Path(__file__).parents[1] / "golden"
SHARD = "pytorch_model-00003-of-00008.bin"
EMBEDDING = "transformer.word_embeddings.weight"


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
    family = family_of({"model_type": "chatglm"})
    ours = expected_shapes(family, family.config_class(vocab_size=130528))
    assert ours == {key: shape for key, shape in published.items() if key not in rotary}


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


@pytest.mark.parametrize("dtype", [torch.int16, torch.int8, torch.bool])
def test_weights_that_are_no_fractions(folder: Path, dtype: torch.dtype) -> None:
    name = "transformer.final_layernorm.weight"
    tensors = random_tensors(tiny_config())
    rewrite(folder, tensors | {name: tensors[name].to(dtype)})
    kind = MismatchError if dtype == torch.int8 else DamagedFileError  # a byte is taken for a packed weight
    only(examine(folder), kind, str(folder / "pytorch_model-0000"), "quantized" if dtype == torch.int8 else name)


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
    model = load(tmp_path, device="cpu").model.quantize(bits)
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


def test_chatglm2_weights_with_our_config(folder: Path) -> None:
    rewrite(folder, {"transformer.encoder.layers.0.input_layernorm.weight": torch.ones(8)})
    only(examine(folder), UnsupportedModelError, "ChatGLM2", str(folder))


def test_another_model_type(folder: Path) -> None:
    change_config(folder, model_type="llama")
    only(examine(folder), UnsupportedModelError, "llama")
