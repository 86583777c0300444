"""The GPU benchmark on the CPU, tiny: every part runs, its checks pass, figures are whole; the full plan fits."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.device_measures import weights_written_out
from benchmarks.device_model import SIZES_TINY, device_network
from benchmarks.device_work import FULL, TINY, Plan, greedy
from benchmarks.gpu import commit, compare
from chatglm import kernels
from chatglm.engine.request import token_limit
from tests import forking

COMMAND = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--tiny", "--bits", "16", "4"]
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_every_part_runs() -> None:
    done = forking.run(COMMAND, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["passed"]
    assert set(result["checks"]) == set(result["launches"]) == {"16 bits", "4 bits"}
    assert min(result["launches"].values()) > 0
    kinds = {"product", "step", "prompt", "chats", "mixed", "original"}
    assert {row["kind"] for row in result["rows"]} == kinds
    assert [row["bits"] for row in result["rows"] if row["kind"] == "original"] == [4]
    for row in result["rows"]:
        figures = [row[name] for name in ("ms", "floor_ms", "fraction", "gb", "gflop")]
        assert all(math.isfinite(figure) and figure > 0 for figure in figures), row
        assert math.isclose(row["fraction"], row["floor_ms"] / row["ms"], rel_tol=1e-9)


@pytest.mark.parametrize("plan", [FULL, TINY])
def test_every_request_of_a_plan_fits_into_the_network(plan: Plan) -> None:
    for num_prompt, num_new in plan.longest().values():
        assert token_limit(num_prompt, greedy(num_new), plan.sizes["max_sequence_length"]) == num_new


def test_rows_are_compared_by_what_they_measure(capsys: pytest.CaptureFixture[str]) -> None:
    before = [{"kind": "step", "bits": 4, "batch": 1, "ms": 6.0}, {"kind": "step", "bits": 8, "batch": 1, "ms": 9.0}]
    compare([{"kind": "step", "bits": 4, "batch": 1, "ms": 2.0, "fraction": 0.5}, {"kind": "mixed", "ms": 1.0}], before)
    assert capsys.readouterr().out.split("\n") == ["  3.00 times as fast: kind=step bits=4 batch=1", ""]


def test_upstreams_products_equal_the_reference_and_are_undone() -> None:
    network = device_network(SIZES_TINY, 4, 8, torch.device("cpu"), torch.float32)
    x = torch.randn(3, SIZES_TINY["hidden_size"])
    layers = [network.transformer.layers[0].mlp.dense_h_to_4h, network.lm_head]
    with torch.inference_mode(), kernels.use("reference"):
        expected = [layer(x) for layer in layers]
    with torch.inference_mode(), weights_written_out(network):
        assert all("forward" in vars(layer) for layer in layers)
        torch.testing.assert_close([layer(x) for layer in layers], expected)
    assert not any("forward" in vars(layer) for layer in network.modules())


def test_a_machine_without_git_has_an_unknown_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert commit() == "unknown"
