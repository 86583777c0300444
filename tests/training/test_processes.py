"""Several processes train as one does with the same global batch."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from chatglm.training.run import run
from tests.training.data import arguments, flags

ROOT = Path(__file__).parents[2]
METHODS = {
    "ptuning": {"pre_seq_len": 3, "learning_rate": 1.0},
    "full": {"learning_rate": 0.01},
}
# Dropout would differ: each process draws its own.
ENTRY = """
import sys
import torch
torch.set_num_threads(1)
torch.nn.Dropout.forward = lambda self, x: x
from chatglm.training.run import main
sys.exit(main(sys.argv[1:]))
"""


def _losses(output: Path) -> list[float]:
    state = json.loads((output / "trainer_state.json").read_text(encoding="utf-8"))
    return [row["loss"] for row in state["log_history"] if "loss" in row]


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_are_as_one(
    method: str, base: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.nn.Dropout, "forward", lambda self, x: x)
    options = METHODS[method] | {"do_train": True, "report_to": "none", "max_steps": 4}
    run(arguments(base, rows, tmp_path / "one", per_device_train_batch_size=4, **options))
    words = flags(base, rows, tmp_path / "two", per_device_train_batch_size=2, ddp_backend="gloo", **options)
    port = _free_port()
    children = [
        subprocess.Popen(
            [sys.executable, "-c", ENTRY, *words],
            env=os.environ
            | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    outputs = [child.communicate(timeout=120) for child in children]
    assert [child.returncode for child in children] == [0, 0], b"\n".join(out + err for out, err in outputs).decode()
    assert outputs[1][0] == b"", "only the first process speaks"
    assert _losses(tmp_path / "two") == pytest.approx(_losses(tmp_path / "one"), rel=1e-4)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-2, atol=1e-3)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
