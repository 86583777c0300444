"""Damaged checkpoints: what is wrong with a file is told before a model is loaded, and what to do instead."""

from __future__ import annotations

import contextlib
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from chatglm.errors import ChatGLMError, DamagedFileError, MismatchError
from chatglm.training import run as runs
from chatglm.training.resuming import check_checkpoint
from chatglm.training.trainer import move_weights_last
from tests.folders import cut
from tests.loading.damage import damage
from tests.training.data import arguments

OPTIONS = {"lora_rank": 2, "do_train": True, "max_steps": 4, "save_steps": 2, "report_to": "none"}


@pytest.fixture(scope="module")
def trained(base: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("trained")
    runs.run(arguments(base, rows, output, **OPTIONS))
    return output


@pytest.fixture
def output(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "output")


@pytest.mark.parametrize("num_moved", range(4))
def test_weights_never_lie_beside_settings_of_another_training(
    num_moved: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("config.json", "model.safetensors", "z.json")
    folders = [tmp_path / word for word in ("old", "new")]
    for folder in folders:
        folder.mkdir()
        for name in names:
            (folder / name).write_text(folder.name)
    replace, left = Path.replace, [None] * num_moved

    def replace_or_end(path: Path, target: Path) -> Path:
        if not left:
            raise KeyboardInterrupt
        left.pop()
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", replace_or_end)
    with contextlib.suppress(KeyboardInterrupt):
        move_weights_last(folders[1], folders[0], "model.safetensors")
    found = {path.name: path.read_text() for path in folders[0].iterdir()}
    assert ("model.safetensors" in found) == (num_moved == 3)
    assert num_moved < 3 or set(found.values()) == {"new"}


def edit_state(path: Path, **keys: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | keys), encoding="utf-8")


DAMAGES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "cut optimizer": ("optimizer.pt", cut, "cut short or damaged.*delete optimizer.pt and scheduler.pt"),
    "other optimizer": (
        "optimizer.pt",
        lambda path: torch.save({"a": 1}, path),
        "does not hold what the trainer wrote",
    ),
    "empty scheduler": (
        "scheduler.pt",
        lambda path: path.write_bytes(b""),
        "scheduler.pt is empty.*delete optimizer.pt",
    ),
    "poisoned": ("scheduler.pt", lambda path: path.write_bytes(pickle.dumps({"a": print}, 4)), "builtins.print"),
    "text": ("rng_state.pth", lambda path: path.write_text("hello"), "not a PyTorch file.*or delete rng_state.pth"),
    "other numbers": ("rng_state.pth", lambda path: torch.save({"python": 1}, path), "does not hold what"),
    "cut state": ("trainer_state.json", cut, "is not readable JSON"),
    "words": (
        "trainer_state.json",
        lambda path: edit_state(path, global_step="four"),
        "global_step is a whole number .*, not 'four'",
    ),
    "new keys": ("trainer_state.json", lambda path: edit_state(path, colour=1), "holds 'colour'"),
    "no log": ("trainer_state.json", lambda path: edit_state(path, log_history=[1]), "log_history is"),
    "callbacks": (
        "trainer_state.json",
        lambda path: edit_state(path, stateful_callbacks={"a": 1}),
        "stateful_callbacks",
    ),
    "weights": ("adapter_model.safetensors", cut, "adapter_model.safetensors is cut short"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_told_before_a_model_is_loaded(
    name: str, base: Path, rows: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, spoil, words = DAMAGES[name]
    spoil(output / "checkpoint-4" / file)
    monkeypatch.setattr(runs, "load", lambda *args, **options: pytest.fail("a model is loaded"))
    with pytest.raises(DamagedFileError, match=f"(?s){words}") as caught:
        runs.run(arguments(base, rows, output, resume_from_checkpoint="true", **OPTIONS))
    assert str(output / "checkpoint-4" / file) in caught.value.problem
    assert f"Resume from {output / 'checkpoint-2'}" in caught.value.remedy


def test_the_remedies_help(base: Path, rows: Path, output: Path) -> None:
    more = OPTIONS | {"max_steps": 6}
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (output / "checkpoint-4" / name).unlink()
    (output / "checkpoint-4" / "trainer_state.json").write_bytes(
        b"\xef\xbb\xbf" + (output / "checkpoint-4" / "trainer_state.json").read_bytes()
    )
    runs.run(arguments(base, rows, output, resume_from_checkpoint="true", **more))
    assert json.loads((output / "trainer_state.json").read_text(encoding="utf-8"))["global_step"] == 6
    cut(output / "checkpoint-6" / "optimizer.pt")
    runs.run(arguments(base, rows, output, resume_from_checkpoint=output / "checkpoint-2", **more))


def test_the_state_of_another_run(base: Path, rows: Path, output: Path) -> None:
    path = output / "checkpoint-4" / "optimizer.pt"
    state = torch.load(path, weights_only=True)
    state["param_groups"] = state["param_groups"][:1] * 3
    torch.save(state, path)
    with pytest.raises(MismatchError, match=r"optimizer\.pt and scheduler\.pt do not fit this run.*delete"):
        runs.run(arguments(base, rows, output, resume_from_checkpoint="true", **OPTIONS | {"max_steps": 6}))


def test_damaged_checkpoints_at_random(trained: Path, tmp_path: Path) -> None:
    for number in range(60):
        folder = shutil.copytree(trained / "checkpoint-4", tmp_path / str(number))
        damage(folder, number)
        with contextlib.suppress(ChatGLMError):
            check_checkpoint(folder, [])
        shutil.rmtree(folder)
