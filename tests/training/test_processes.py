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
from tests import forking
from tests.training.data import arguments, flags

pytestmark = pytest.mark.xdist_group("programs")
ROOT = Path(__file__).parents[2]
METHODS = {
    "ptuning": {"pre_seq_len": 3, "learning_rate": 1.0},
    "full": {"learning_rate": 0.01},
}
# Dropout would differ: each process draws its own.
ENTRY = """
import json, sys
import torch
torch.set_num_threads(1)
torch.nn.Dropout.forward = lambda self, x: x
from chatglm.training.run import main
sys.exit(max(main(words) for words in json.loads(sys.argv[1])))
"""


# accelerate shards on GPUs only; gloo can on CPUs, so its list of kinds gets one more.
SHARDING = """
import inspect, textwrap
from accelerate import state
source = textwrap.dedent(inspect.getsource(state.AcceleratorState.__init__))
assert source.count("DistributedType.MULTI_GPU,") == 1
source = source.replace("DistributedType.MULTI_GPU,", "DistributedType.MULTI_GPU, DistributedType.MULTI_CPU,")
exec(source, state.__dict__)
state.AcceleratorState.__init__ = state.__dict__.pop("__init__")
"""


def _losses(output: Path) -> list[float]:
    state = json.loads((output / "trainer_state.json").read_text(encoding="utf-8"))
    return [row["loss"] for row in state["log_history"] if "loss" in row]


@pytest.mark.slow
def test_two_processes_train_as_one(base: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.Dropout, "forward", lambda self, x: x)
    shared = {"do_train": True, "report_to": "none", "max_steps": 4}
    words = []
    for method, options in METHODS.items():
        run(arguments(base, rows, tmp_path / f"{method}-one", per_device_train_batch_size=4, **shared, **options))
        two = {"per_device_train_batch_size": 2, "ddp_backend": "gloo"} | shared | options
        words.append(flags(base, rows, tmp_path / f"{method}-two", **two))
    outputs = _run_two(words)
    assert outputs[1] == "", "only the first process prints"
    for method in METHODS:
        folders = [tmp_path / f"{method}-{number}" for number in ("one", "two")]
        assert _losses(folders[1]) == pytest.approx(_losses(folders[0]), rel=1e-4)
        one, two_ = (load_file(folder / "model.safetensors") for folder in folders)
        assert one.keys() == two_.keys()
        for name in one:
            torch.testing.assert_close(two_[name], one[name], rtol=1e-2, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["deepspeed", "fsdp"])
def test_a_sharded_model_trains_and_resumes_as_one(backend: str, base: Path, rows: Path, tmp_path: Path) -> None:
    """Two processes, each with a shard of optimizer or model: losses of one, and a resumed run ends at the same bits.

    DeepSpeed is not among what development needs: `pip install wheel && pip install --no-build-isolation deepspeed`.
    """
    if backend == "deepspeed":
        pytest.importorskip("deepspeed")
        sharding = {"deepspeed": ROOT / "ptuning" / "deepspeed.json"}
    else:
        sharding = {"fsdp": True, "fsdp_config": ROOT / "ptuning" / "fsdp.json"}
    shared = {"do_train": True, "report_to": "none", "max_steps": 4, "save_steps": 2, **METHODS["full"]}
    run(arguments(base, rows, tmp_path / "one", per_device_train_batch_size=4, **shared))
    two = {"per_device_train_batch_size": 2, "ddp_backend": "gloo", "use_cpu": True} | shared | sharding
    entry = ENTRY if backend == "deepspeed" else SHARDING + ENTRY
    _run_two([flags(base, rows, tmp_path / "two", **two)], entry)
    resumed = tmp_path / "two" / "checkpoint-2"
    _run_two([flags(base, rows, tmp_path / "again", **two, resume_from_checkpoint=resumed)], entry)
    assert _losses(tmp_path / "two") == pytest.approx(_losses(tmp_path / "one"), rel=1e-4)
    one, whole, again = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two", "again"))
    assert one.keys() == whole.keys() == again.keys()
    for name in one:
        torch.testing.assert_close(whole[name], one[name], rtol=1e-2, atol=1e-3)
        assert torch.equal(again[name], whole[name])


def _run_two(words: list[list[str]], entry: str = ENTRY) -> list[str]:
    """Let two processes do these runs together; what each printed."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": "2"}
    shared = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"} | place
    shared["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    children = [
        forking.Popen(
            [sys.executable, "-c", entry, json.dumps(words)],
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )
        for rank in range(2)
    ]
    try:
        outputs = [child.communicate(timeout=250) for child in children]
    finally:
        for child in children:
            child.kill()
    assert [child.returncode for child in children] == [0, 0], outputs
    return [printed for printed, _ in outputs]


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
