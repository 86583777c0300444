"""A P-Tuning prefix on its base model, on another, and where it is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from chatglm.errors import (
    MismatchError,
    ModelNotFoundError,
)
from chatglm.loading.prefix_checkpoint import find_prefix
from chatglm.models import family_of
from tests.folders import (
    change_config,
    make_folder,
    random_tensors,
    tiny_config,
    write_config,
    write_weights,
)
from tests.loading.folders import load_cpu, logits, reference

SPEC = family_of({"model_type": "chatglm"}).spec(family_of({"model_type": "chatglm"}).config({}))


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
    assert torch.equal(logits(model), logits(whole))
    assert not torch.equal(logits(model), logits(load_cpu(folder, dtype=dtype).model))


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


def test_a_prefix_of_integers(folder: Path, tmp_path: Path) -> None:
    prefix = make_prefix(tmp_path / "prefix")
    write_weights(tmp_path / "prefix", {name: tensor.int() for name, tensor in prefix.items()}, "bin")
    with pytest.raises(MismatchError, match="holds no P-Tuning prefix"):
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
    with pytest.raises(ModelNotFoundError, match=r"There is no folder .*。Check --ptuning-checkpoint"):
        load_cpu(folder, ptuning_checkpoint=tmp_path / "absent")
