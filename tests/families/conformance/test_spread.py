"""Every family over several devices and several processes: the answers of one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from chatglm.loading import load, placement
from chatglm.loading.placement import part_sizes, place
from chatglm.pipeline import Pipeline
from tests import forking
from tests.families.cases import FamilyCase
from tests.families.conformance.asking import answers, error, logits
from tests.families.conformance.sharded import LOADED, NUM_RANKS

ROOT = Path(__file__).parents[3]


def test_parts_of_a_network(case: FamilyCase) -> None:
    """Every parameter belongs to a part, and the layers are spread evenly."""
    family = case.family()
    network = family.empty_network(case.config(num_layers=32))
    sizes = part_sizes(network, torch.float32)
    spec = network.spec
    assert {f"{spec.layers}.{number}" for number in range(32)} <= sizes.keys()
    assert all(any(name.startswith(f"{part}.") for part in sizes) for name, _ in network.named_parameters())
    device_map = place(sizes, [1.0] * 4, spec)
    numbers = [device_map[f"{spec.layers}.{number}"] for number in range(32)]
    assert numbers == sorted(numbers)
    assert set(numbers) == {0, 1, 2, 3}


def test_placed_answers(case: FamilyCase, pipe: Pipeline, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All devices are the CPU here: every weight goes through its place, every layer through its hooks."""
    monkeypatch.setattr(placement, "choose_device", lambda name: torch.device("cpu"))
    with Pipeline(load(folder, device="cpu", dtype="fp32", num_gpus=3, wraps=False)) as placed:
        spec = placed.model.spec
        layers = [placed.model.get_submodule(f"{spec.layers}.{number}") for number in range(spec.num_layers)]
        assert all(hasattr(layer, "_hf_hook") for layer in layers)
        assert error(logits(placed), logits(pipe)) < 1e-6
        assert answers(placed) == answers(pipe)


@pytest.fixture(scope="package")
def seen(case: FamilyCase, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of the processes saw."""
    root = tmp_path_factory.mktemp("sharded")
    case.make_folder(root / "plain")
    case.make_folder(root / "prefix", pre_seq_len=3)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    place_ = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(NUM_RANKS)}
    changes = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    processes = [
        forking.Popen(
            [sys.executable, "-m", "tests.families.conformance.sharded", str(root)],
            cwd=ROOT,
            env=os.environ | changes | place_ | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
        )
        for rank in range(NUM_RANKS)
    ]
    try:
        printed = [process.communicate(timeout=250)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait(30)
    assert not any(process.returncode for process in processes), "\n".join(printed)
    return [json.loads((root / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(NUM_RANKS)]


@pytest.mark.xdist_group("programs")
@pytest.mark.parametrize("loaded", LOADED)
def test_sharded_answers(seen: list[dict[str, Any]], loaded: str) -> None:
    for rank in seen:
        of_case = rank[loaded]
        assert of_case["error"] < 1e-5
        assert of_case["answers"][0] == of_case["answers"][1]
        assert of_case["logits"] == seen[0][loaded]["logits"]
        assert all(NUM_RANKS * own == whole for own, whole in of_case["sizes"].values())
