"""Comparing a model with its quantized form, block by block: the numbers are those of the two models run whole."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from chatglm import kernels
from chatglm.conversion import blockwise, evaluate, examined, make_plan, quantize_folder, read_samples
from chatglm.conversion.samples import Sample
from chatglm.errors import InvalidLogitsError
from chatglm.loading import load
from tests.conversion.text import write_text
from tests.folders import make_folder, write_weights

CPU = torch.device("cpu")


def make_pair(folder: Path, changes: dict[str, Any], **how: Any) -> tuple[Path, Path]:
    make_folder(folder / "before", "safetensors", dtype=torch.float32, **changes)
    report = examined(folder / "before")
    quantize_folder(report, folder / "after", make_plan(report, **how))
    return folder / "before", folder / "after"


@torch.no_grad()
def scores(folder: Path, samples: list[Sample]) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores of all predicted positions and what was said there, from the whole model."""
    model = load(folder, device="cpu", dtype="fp32").model
    logits = [model(torch.tensor([s.input_ids])).logits[0, s.first : -1] for s in samples]
    return torch.cat(logits), torch.tensor([token for s in samples for token in s.input_ids[s.first + 1 :]])


@pytest.mark.parametrize(
    ("changes", "how"),
    [
        ({}, {"bits": 4}),
        ({}, {"bits": 8, "embedding_bits": 4}),
        ({"pre_seq_len": 3}, {"bits": 4, "group_size": 32, "embedding_bits": 8}),
    ],
    ids=str,
)
def test_numbers_are_those_of_whole_models(
    changes: dict[str, Any], how: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, after = make_pair(tmp_path, changes, **how)
    samples = read_samples(write_text(tmp_path / "text.txt", 100), examined(before), 10**9, 1, 0)
    monkeypatch.setattr(blockwise, "ROWS_AT_ONCE", 100)  # several parts of the vocabulary
    steps: list[tuple[int, int]] = []
    found = evaluate(examined(before), examined(after), samples, CPU, lambda done, all_: steps.append((done, all_)))
    with kernels.use("reference"):
        (old, said), (new, _) = scores(before, samples), scores(after, samples)
    assert found.num_tokens == len(said)
    for ours, logits in ((found.perplexity_before, old), (found.perplexity_after, new)):
        assert ours == pytest.approx(math.exp(torch.nn.functional.cross_entropy(logits, said)), rel=1e-4)
    assert found.agreement == pytest.approx(float((old.argmax(1) == new.argmax(1)).double().mean()))
    assert found.logit_error == pytest.approx(float((new - old).norm() / old.norm()), rel=1e-3)
    assert len(found.layers) == 8
    assert steps == [(1, 3), (2, 3), (3, 3)]


def test_a_model_agrees_with_itself(tmp_path: Path) -> None:
    make_folder(tmp_path / "model")
    samples = read_samples(write_text(tmp_path / "text.txt", 100), examined(tmp_path / "model"), 10**9, 1, 0)
    found = evaluate(examined(tmp_path / "model"), examined(tmp_path / "model"), samples, CPU)
    assert found.agreement == 1
    assert found.logit_error == 0
    assert found.perplexity_before == found.perplexity_after
    assert not found.layers


def test_more_bits_are_less_error(tmp_path: Path) -> None:
    before, coarse = make_pair(tmp_path, {}, bits=4)
    report = examined(before)
    quantize_folder(report, tmp_path / "fine", make_plan(report, bits=8))
    samples = read_samples(write_text(tmp_path / "text.txt", 100), report, 10**9, 1, 0)
    errors = [evaluate(report, examined(folder), samples, CPU) for folder in (coarse, tmp_path / "fine")]
    assert 10 * errors[1].logit_error < errors[0].logit_error
    assert all(10 * errors[1].layers[name] < error for name, error in errors[0].layers.items())


def test_scores_that_are_not_finite_are_no_agreement(tmp_path: Path) -> None:
    tensors = make_folder(tmp_path / "model", "safetensors")
    tensors["transformer.final_layernorm.weight"][0] = float("nan")
    write_weights(tmp_path / "model", tensors, "safetensors")
    report = examined(tmp_path / "model")
    samples = read_samples(write_text(tmp_path / "text.txt", 100), report, 10**9, 1, 0)
    with pytest.raises(InvalidLogitsError, match="not finite"):
        evaluate(report, report, samples, CPU)
