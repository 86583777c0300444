"""GPTQ of whole folders: the bound on the demo model, the same result twice, every layout and kind of folder."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from chatglm import kernels
from chatglm.checkpoints import WeightReader, list_tensors
from chatglm.checkpoints.validate import ValidationReport
from chatglm.conversion import Calibration, evaluate, examined, make_plan, quantize_folder, read_samples
from chatglm.conversion.plan import PackingPlan
from chatglm.conversion.report import Evaluation, QuantizationReport
from chatglm.conversion.samples import BUNDLED, Sample
from chatglm.demo import CHECKPOINT
from chatglm.errors import ChatGLMError, InvalidRequestError
from chatglm.loading import load
from tests.conversion.text import held_out_conversations, write_text
from tests.folders import LAYOUTS, change_config, make_folder, write_weights

CPU = torch.device("cpu")


def stored(folder: Path) -> dict[str, Tensor]:
    tensors = list_tensors(folder)
    with WeightReader(tensors) as reader:
        return {name: reader.read(name) for name in tensors}


def calibrated(
    source: Path, target: Path, text: Path, num_tokens: int = 10**9, seed: int = 0, **how: Any
) -> QuantizationReport:
    report = examined(source)
    samples = read_samples(text, report, num_tokens, 1, seed)
    return quantize_folder(report, target, make_plan(report, **how), calibration=Calibration(samples))


@pytest.fixture(autouse=True)
def _reference_kernel() -> Iterator[None]:
    with kernels.use("reference"):
        yield


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.txt", 600)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    make_folder(folder, "safetensors")
    return folder


def two_layers_of_the_demo(folder: Path) -> Path:
    """The demo model without its last six layers: trained weights, and inputs as a whole model has them."""
    shutil.copytree(CHECKPOINT, folder, ignore=shutil.ignore_patterns("model.safetensors"))
    tensors = {name: tensor for name, tensor in stored(CHECKPOINT).items() if not re.search(r"layers\.[2-7]\.", name)}
    write_weights(folder, tensors, "safetensors")
    change_config(folder, num_layers=2)
    return folder


@pytest.mark.parametrize(
    ("num_layers", "num_tokens", "num_held_out", "group_size"),
    [
        (2, 2500, 600, 64),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [(2, 2500, 600, 0), (8, 4000, 1200, 0), (8, 4000, 1200, 64)]
        ),
    ],
)
def test_gptq_error_bound(num_layers: int, num_tokens: int, num_held_out: int, group_size: int, tmp_path: Path) -> None:
    """At 4 bits, on conversations that it has not seen, outputs move at most 0.8 times as much as by plain rounding:
    those of every layer (in groups, of every kind of layer), and the logits of the whole model."""
    demo = examined(CHECKPOINT if num_layers == 8 else two_layers_of_the_demo(tmp_path / "two_layers"))
    held_out = held_out_conversations(tmp_path / "held_out.jsonl")
    held_out_samples = read_samples(held_out, demo, num_held_out, num_held_out * 5 // 6, 0)
    plan = make_plan(demo, bits=4, group_size=group_size)
    calibration = Calibration(read_samples(BUNDLED, demo, num_tokens, num_tokens, 0))
    plain, ours = (
        evaluated(demo, tmp_path / name, plan, given, held_out_samples)
        for name, given in (("rtn", None), ("gptq", calibration))
    )
    ratios = {name: ours.layers[name] / error for name, error in plain.layers.items()}
    assert len(ratios) == 4 * num_layers
    kinds = {name.split(".")[-2] for name in ratios}
    mean = {kind: sum(ratio for name, ratio in ratios.items() if f".{kind}." in name) / num_layers for kind in kinds}
    assert max((mean if group_size else ratios).values()) <= 0.8, ratios
    assert ours.logit_error <= 0.8 * plain.logit_error


def evaluated(
    report: ValidationReport, target: Path, plan: PackingPlan, calibration: Calibration | None, samples: list[Sample]
) -> Evaluation:
    quantize_folder(report, target, plan, calibration=calibration)
    return evaluate(report, examined(target), samples, CPU)


def test_the_same_seed_gives_the_same_folder(source: Path, text: Path, tmp_path: Path) -> None:
    for name, seed in (("first", 0), ("second", 0), ("third", 1)):
        calibrated(source, tmp_path / name, text, num_tokens=300, seed=seed)
    first, second, third = (stored(tmp_path / name) for name in ("first", "second", "third"))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert not all(torch.equal(tensor, third[name]) for name, tensor in first.items())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same(layout: str, source: Path, text: Path, tmp_path: Path) -> None:
    make_folder(tmp_path / layout, layout)
    calibrated(tmp_path / layout, tmp_path / "target", text, num_tokens=300, bits=4, group_size=32, embedding_bits=8)
    calibrated(source, tmp_path / "expected", text, num_tokens=300, bits=4, group_size=32, embedding_bits=8)
    expected = stored(tmp_path / "expected")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in stored(tmp_path / "target").items())


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    "changes", [{}, {"pre_seq_len": 4}, {"pre_seq_len": 3, "prefix_projection": True}, {"position_encoding_2d": False}],
    ids=str,
)  # fmt: skip
def test_every_kind_of_network(changes: dict[str, Any], bits: int, text: Path, tmp_path: Path) -> None:
    """The first block's inputs do not depend on rounding, so its errors can be measured on the loaded models."""
    make_folder(tmp_path / "source", "safetensors", **changes)
    report = calibrated(tmp_path / "source", tmp_path / "target", text, bits=bits)
    assert len(report.layers) == 8
    for layer in report.layers:
        assert layer.output is not None
        assert layer.output_if_rounded is not None
        assert 0 < layer.output < layer.output_if_rounded
    first = next(layer for layer in report.layers if layer.name.endswith("0.attention.query_key_value.weight"))
    measured = output_error(tmp_path / "source", tmp_path / "target", text, "layers.0.attention.query_key_value")
    assert first.output == pytest.approx(measured, rel=1e-3)


@torch.no_grad()
def output_error(source: Path, target: Path, text: Path, layer: str) -> float:
    """The relative error of a layer's outputs over all of a text, bias left out."""
    old, new = (load(folder, device="cpu", dtype="fp32").model for folder in (source, target))
    lost, whole = [], []

    def compare(module: Any, inputs: Any, output: Tensor) -> None:
        lost.append(new.transformer.get_submodule(layer)(inputs[0]) - output)
        whole.append(output - module.bias)

    old.transformer.get_submodule(layer).register_forward_hook(compare)
    for sample in read_samples(text, examined(source), 10**9, 1, 0):
        old(torch.tensor([sample.input_ids]))
    return float(torch.cat(lost, 1).norm() / torch.cat(whole, 1).norm())


def test_later_blocks_are_rounded_for_the_rounded_blocks_before_them(text: Path, tmp_path: Path) -> None:
    """The error that is reported of the last block is that for the inputs which it has in the new network."""
    source = tmp_path / "source"
    tensors = make_folder(source, "safetensors")
    for name, tensor in tensors.items():
        if name.startswith("transformer.layers.0.mlp"):
            tensor *= 10  # or the block would do little, and its rounding less
    write_weights(source, tensors, "safetensors")
    report = calibrated(source, tmp_path / "target", text, bits=4)
    name = "layers.1.attention.query_key_value"
    last = next(layer for layer in report.layers if layer.name.endswith(f"{name}.weight"))
    own_inputs = output_error_in(tmp_path / "target", source, text, name)
    old_inputs = output_error(source, tmp_path / "target", text, name)
    assert last.output is not None
    assert 10 * abs(last.output - own_inputs) < abs(last.output - old_inputs)


@torch.no_grad()
def output_error_in(target: Path, source: Path, text: Path, layer: str) -> float:
    """As `output_error`, for the inputs that the layer has in the new network."""
    new, old = (load(folder, device="cpu", dtype="fp32").model for folder in (target, source))
    lost, whole = [], []

    def compare(module: Any, inputs: Any, output: Tensor) -> None:
        before = old.transformer.get_submodule(layer)
        lost.append(output - before(inputs[0]))
        whole.append(before(inputs[0]) - before.bias)

    new.transformer.get_submodule(layer).register_forward_hook(compare)
    for sample in read_samples(text, examined(source), 10**9, 1, 0):
        new(torch.tensor([sample.input_ids]))
    return float(torch.cat(lost, 1).norm() / torch.cat(whole, 1).norm())


def test_progress_counts_layers(source: Path, text: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    report = examined(source)
    quantize_folder(
        report,
        tmp_path / "target",
        make_plan(report, bits=4, embedding_bits=4),
        calibration=Calibration(read_samples(text, report, 300, 1, 0)),
        layer_progress=lambda done, all_: seen.append((done, all_)),
    )
    assert seen == [(number, 8) for number in range(1, 9)]


def test_nothing_left_to_calibrate(source: Path, text: Path, tmp_path: Path) -> None:
    calibrated(source, tmp_path / "layers", text, num_tokens=300, bits=4)
    with pytest.raises(InvalidRequestError, match="GPTQ has nothing to do"):
        calibrated(tmp_path / "layers", tmp_path / "both", text, num_tokens=300, embedding_bits=4)


def test_weights_that_are_not_finite_are_not_written(text: Path, tmp_path: Path) -> None:
    tensors = make_folder(tmp_path / "source", "safetensors")
    tensors["transformer.layers.0.mlp.dense_h_to_4h.weight"][0, 0] = float("nan")
    write_weights(tmp_path / "source", tensors, "safetensors")
    with pytest.raises(ChatGLMError, match="not finite"):
        calibrated(tmp_path / "source", tmp_path / "target", text, num_tokens=300, bits=4)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
