"""Folders of every family: layouts, memory, what the doctor finds, and folders made from folders."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from chatglm.__main__ import main
from chatglm.checkpoints.validate import validate_folder
from chatglm.conversion import convert_folder
from chatglm.errors import CheckpointError
from chatglm.loading.memory_estimate import cache_bytes
from chatglm.loading.memory_plan import RESERVED_BYTES
from chatglm.models import family_of
from chatglm.nn.kv_cache import KVCache
from chatglm.pipeline import Pipeline, load_pipeline
from tests.families.cases import FamilyCase
from tests.families.conformance.asking import answers, answers_of, logits, logits_of
from tests.folders import LAYOUTS


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(case: FamilyCase, pipe: Pipeline, layout: str, tmp_path: Path) -> None:
    case.make_folder(tmp_path, layout)
    assert torch.equal(logits_of(tmp_path), logits(pipe))


def test_mapped(pipe: Pipeline, folder: Path) -> None:
    with load_pipeline(folder, device="cpu", dtype="fp32", mmap=True) as mapped:
        assert torch.equal(logits(mapped), logits(pipe))
        assert answers(mapped) == answers(pipe)


def test_half_precision(case: FamilyCase, pipe: Pipeline, folder: Path) -> None:
    assert logits_of(folder, dtype="bf16").dtype == torch.bfloat16
    relative = (logits_of(folder, dtype="bf16").float() - logits(pipe)).norm() / logits(pipe).norm()
    assert 0 < relative < 0.05


def test_limited_memory(pipe: Pipeline, folder: Path) -> None:
    needed = sum(parameter.numel() * parameter.element_size() for parameter in pipe.model.parameters())
    with load_pipeline(folder, device="cpu", dtype="fp32", max_memory=RESERVED_BYTES + needed - 1) as limited:
        assert any(parameter.is_meta for parameter in limited.model.parameters()), "nothing is streamed"
        assert answers(limited) == answers(pipe)


def test_memory_estimate(pipe: Pipeline) -> None:
    """Keys and values of the groups, not of all heads."""
    spec = pipe.model.spec
    key, value = KVCache(1).update(*[torch.zeros(1, spec.num_kv_heads, 1, spec.head_width)] * 2, 0)
    assert cache_bytes(spec, torch.float32) == spec.num_layers * spec.context_limit * (key.nbytes + value.nbytes)


def test_a_sound_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(folder)]) == 0


def _missing(tensors: dict[str, Tensor], name: str) -> None:
    del tensors[name]


def _misshapen(tensors: dict[str, Tensor], name: str) -> None:
    tensors[name] = tensors[name][:-1].clone()


def _renamed(tensors: dict[str, Tensor], name: str) -> None:
    tensors[f"{name}_of_another"] = tensors.pop(name)


@pytest.mark.parametrize("damage", [_missing, _misshapen, _renamed])
@pytest.mark.parametrize("where", ["first linear", "last linear", "norm", "embedding"])
def test_a_damaged_folder(case: FamilyCase, damage: object, where: str, tmp_path: Path) -> None:
    assert callable(damage)
    spec = case.family().spec(case.config())
    layer = f"{spec.layers}.{spec.num_layers - 1}"
    name = {
        "first linear": f"{layer}.{spec.linears[0].name}.weight",
        "last linear": f"{layer}.{spec.linears[-1].name}.weight",
        "norm": f"{spec.final_norm}.weight",
        "embedding": spec.embedding_weight,
    }[where]
    tensors = case.random_tensors()
    damage(tensors, name)
    case.write_folder(tmp_path, tensors)
    report = validate_folder(tmp_path, family_of)
    assert not report.is_healthy
    problems = " ".join(finding.problem for finding in report.errors)
    assert name in problems or (where == "embedding" and "vocabulary" in problems)
    with pytest.raises(CheckpointError):
        load_pipeline(tmp_path)


def test_a_folder_without_its_tokenizer(case: FamilyCase, tmp_path: Path) -> None:
    case.make_folder(tmp_path)
    (tmp_path / "files").mkdir()
    case.write_tokenizer(tmp_path / "files")
    (missing,) = {path.name for path in (tmp_path / "files").iterdir()} - {"tokenizer_config.json"}
    (tmp_path / missing).unlink()
    with pytest.raises(CheckpointError, match=missing):
        load_pipeline(tmp_path)


@pytest.mark.parametrize("layout", ["bin_shards", "safetensors"])
def test_convert(case: FamilyCase, pipe: Pipeline, layout: str, tmp_path: Path) -> None:
    case.make_folder(tmp_path / "source", layout)
    convert_folder(tmp_path / "source", tmp_path / "target", shard_bytes=50_000)
    assert torch.equal(logits_of(tmp_path / "target"), logits(pipe))
    assert answers_of(tmp_path / "target") == answers(pipe)
