"""Packed weights of every family: while loading, in folders, by GPTQ."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from chatglm import kernels
from chatglm.__main__ import main
from chatglm.conversion.report import REPORT_NAME
from chatglm.pipeline import Pipeline, load_pipeline
from chatglm.quantization.layers import QuantizedLinear
from tests.conversion.text import write_text
from tests.families.conformance.asking import answers, error, logits, logits_of

BOUNDS = {8: 0.05, 4: 0.6}  # of the logits of three layers with random weights


@pytest.mark.parametrize("kernel", ["reference", "native"])
@pytest.mark.parametrize("bits", [8, 4])
def test_quantized_while_loading(pipe: Pipeline, folder: Path, bits: int, kernel: str) -> None:
    with kernels.use(kernel), load_pipeline(folder, device="cpu", dtype="fp32", quantize=bits) as packed:
        spec = packed.model.spec
        assert packed.model.config.quantization_bit == bits
        for number in range(spec.num_layers):
            for linear in spec.linears:
                layer = packed.model.get_submodule(f"{spec.layers}.{number}.{linear.name}")
                assert isinstance(layer, QuantizedLinear)
                assert (layer.bits, layer.in_features, layer.out_features) == (bits, linear.columns, linear.rows)
                assert layer.weight.shape == (linear.rows, linear.columns * bits // 8)
        assert 0 < error(logits(packed), logits(pipe)) < BOUNDS[bits]
        assert answers(packed) == answers(packed)


@pytest.mark.parametrize(("bits", "options"), [(8, []), (4, []), (4, ["--group-size", "32"]), (8, ["--embeddings"])])
def test_quantized_folders(
    pipe: Pipeline, folder: Path, bits: int, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "target"
    assert main(["quantize", str(folder), str(target), "--bits", str(bits), *options]) == 0
    assert main(["doctor", str(target)]) == 0
    with load_pipeline(target, device="cpu", dtype="fp32") as packed:
        assert 0 < error(logits(packed), logits(pipe)) < BOUNDS[bits]
        if not options:
            assert torch.equal(logits(packed), logits_of(folder, quantize=bits))
        elif options == ["--embeddings"]:
            assert getattr(packed.model.lm_head, "bits", None) == bits


def test_gptq(pipe: Pipeline, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every linear layer is rounded by its inputs, with less error in the outputs than to the nearest."""
    target = tmp_path / "target"
    text = write_text(tmp_path / "text.txt", 300)
    options = ["--bits", "4", "--method", "gptq", "--calibration", str(text), "--evaluate", str(text)]
    assert main(["quantize", str(folder), str(target), *options]) == 0
    spec = pipe.model.spec
    names = [f"{spec.layers}.{n}.{linear.name}.weight" for n in range(spec.num_layers) for linear in spec.linears]
    report = json.loads((target / REPORT_NAME).read_text(encoding="utf-8"))
    layers = {layer["name"]: layer for layer in report["layers"]}
    assert set(names) <= layers.keys()
    assert all(layers[name]["output"] < layers[name]["output_if_rounded"] for name in names)
    assert error(logits_of(target), logits(pipe)) < BOUNDS[4]
