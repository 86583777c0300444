"""P-Tuning v2: what is trained, what is written, how a run resumes, and when it is stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from chatglm.errors import InvalidRequestError, MismatchError, MissingFileError, TrainingError
from chatglm.loading import load
from chatglm.pipeline import load_pipeline
from chatglm.training import run as run_module
from chatglm.training.recipes import make_recipe
from chatglm.training.run import main, run
from chatglm.training.trainer import RecipeTrainer, checkpoints, last_checkpoint
from tests import forking
from tests.training.data import arguments, flags

ROOT = Path(__file__).parents[2]


# All rows in every step, and large steps: random weights hardly answer to a prefix.
LEARNS = {"max_steps": 12, "per_device_train_batch_size": 12, "learning_rate": 3.0}


def _log(output: Path, step: int) -> list[dict[str, Any]]:
    state = json.loads((output / f"checkpoint-{step}" / "trainer_state.json").read_text(encoding="utf-8"))
    return [row for row in state["log_history"] if "loss" in row]


@pytest.mark.parametrize("projection", [False, True])
def test_only_the_prefix_is_trained_and_written(base: Path, rows: Path, tmp_path: Path, projection: bool) -> None:
    output = tmp_path / "out"
    more = {"prefix_projection": True} if projection else {}
    run(arguments(base, rows, output, do_train=True, pre_seq_len=3, **LEARNS, **more))
    tensors = load_file(output / "model.safetensors")
    leaves = ["embedding.weight", *(f"trans.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias") if projection)]
    assert set(tensors) == {f"transformer.prefix_encoder.{leaf}" for leaf in leaves}
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    losses = [row["loss"] for row in _log(output, 12)]
    assert sum(losses[-3:]) < sum(losses[:3]) - 0.05
    for name in ("loss.png", "train_results.json", "all_results.json", "trainer_state.json", "trained.json"):
        assert (output / name).stat().st_size > 0
    assert any((output / "runs").rglob("events.*"))
    assert len({path.stat().st_mode for path in output.glob("*.*") if path.is_file()}) == 1
    assert {path.suffix for path in output.rglob("*") if path.is_file()}.isdisjoint({".bin", ".unfinished"})


def test_a_checkpoint_describes_itself_and_loads_with_no_more_than_its_folder(
    base: Path, rows: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    run(arguments(base, rows, output, do_train=True, pre_seq_len=5))
    with safe_open(output / "model.safetensors", framework="pt") as file:
        notes = file.metadata()
    assert (notes["pre_seq_len"], notes["prefix_projection"], notes["base"]) == ("5", "false", str(base))
    with (
        load_pipeline(base, ptuning_checkpoint=output) as tuned,
        load_pipeline(base, ptuning_checkpoint=output / "checkpoint-4") as same,
        load_pipeline(base) as plain,
    ):
        assert tuned.model.config.pre_seq_len == 5
        answers = [pipe.chat("hello", temperature=0, max_new_tokens=12)[0] for pipe in (tuned, same, plain)]
    assert answers[0] == answers[1] != answers[2]


def test_a_prefix_of_another_base_is_refused(base: Path, rows: Path, tmp_path: Path) -> None:
    run(arguments(base, rows, tmp_path / "out", do_train=True, pre_seq_len=2, max_steps=1))
    other = shutil.copytree(base, tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    tensors["transformer.final_layernorm.weight"] += 1
    torch.save(tensors, other / "pytorch_model.bin")
    (other / "model.safetensors").unlink()
    with pytest.raises(MismatchError, match="trained on another base model") as caught:
        load(other, ptuning_checkpoint=tmp_path / "out")
    assert str(base) in caught.value.remedy


@pytest.mark.parametrize("options", [{"quantization_bit": 8}, {"quantization_bit": 4}, {"dtype": "bf16"}])
def test_bases_of_other_types(options: dict[str, Any], base: Path, rows: Path, tmp_path: Path) -> None:
    """The prefix is float32 and learns, the base stays as it is."""
    output = tmp_path / "out"
    asked = arguments(base, rows, output, do_train=True, pre_seq_len=3, **LEARNS, **options)
    run(asked)
    losses = [row["loss"] for row in _log(output, 12)]
    assert sum(losses[-3:]) < sum(losses[:3]) - 0.05
    assert load_file(output / "model.safetensors")["transformer.prefix_encoder.embedding.weight"].dtype == torch.float32
    load(base, ptuning_checkpoint=output)  # the fingerprint does not depend on packing and rounding


@pytest.mark.parametrize("bits", [None, 4, 8])
def test_gradients_reach_the_prefix_and_nothing_else(bits: int | None, base: Path, rows: Path, tmp_path: Path) -> None:
    asked = arguments(base, rows, tmp_path, do_train=True, pre_seq_len=3)
    network: Any = load(base, quantize=bits).model
    recipe = make_recipe("ptuning", network, "base", asked.model)
    ids = torch.tensor([[20, 21, network.config.gmask_token_id, network.config.bos_token_id, 22, 23]])
    network(input_ids=ids, labels=ids).loss.backward()
    with_gradient = {name for name, parameter in network.named_parameters() if parameter.grad is not None}
    assert with_gradient == set(recipe.state()) == {"transformer.prefix_encoder.embedding.weight"}
    assert bool(network.transformer.prefix_encoder.embedding.weight.grad.abs().sum() > 0)


def test_computing_activations_twice_changes_nothing(base: Path, rows: Path, tmp_path: Path) -> None:
    for mode in ("on", "off"):
        run(arguments(base, rows, tmp_path / mode, do_train=True, pre_seq_len=3, recompute=mode))
    on, off = _log(tmp_path / "on", 4), _log(tmp_path / "off", 4)
    assert [row["loss"] for row in on] == pytest.approx([row["loss"] for row in off], rel=1e-5)


def test_gradients_are_clipped(base: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[float] = []
    original = torch.nn.utils.clip_grad_norm_

    def seen(parameters: Any, max_norm: float, *args: Any, **kwargs: Any) -> Any:
        parameters = list(parameters)
        result = original(parameters, max_norm, *args, **kwargs)
        norms.append(float(sum(p.grad.square().sum() for p in parameters if p.grad is not None) ** 0.5))
        return result

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", seen)
    run(arguments(base, rows, tmp_path, do_train=True, pre_seq_len=3, max_grad_norm=0.001))
    assert len(norms) == 4
    assert max(norms) <= 0.0010001


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(base: Path, rows: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(arguments(base, rows, whole, do_train=True, pre_seq_len=3, max_steps=8, save_steps=5))
    cut.mkdir()
    shutil.copytree(whole / "checkpoint-5", cut / "checkpoint-5")
    options = {"do_train": True, "pre_seq_len": 3, "max_steps": 8, "save_steps": 5}
    run(arguments(base, rows, cut, resume_from_checkpoint="true", **options))
    for one, other in zip(_log(whole, 8), _log(cut, 8), strict=True):
        assert {key: one[key] for key in ("step", "loss", "learning_rate")} == {
            key: other[key] for key in ("step", "loss", "learning_rate")
        }
    ends = [load_file(folder / "model.safetensors") for folder in (whole, cut)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    middle = load_file(whole / "checkpoint-5" / "model.safetensors")
    assert not any(torch.equal(ends[0][name], middle[name]) for name in middle)


def test_the_last_step_is_always_saved(base: Path, rows: Path, tmp_path: Path) -> None:
    run(arguments(base, rows, tmp_path, do_train=True, pre_seq_len=2, max_steps=3, save_strategy="no"))
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-3"]
    assert (tmp_path / "model.safetensors").is_file()


def test_only_so_many_checkpoints_are_kept(base: Path, rows: Path, tmp_path: Path) -> None:
    options = {"save_steps": 1, "save_total_limit": 2, "max_steps": 4}
    run(arguments(base, rows, tmp_path, do_train=True, pre_seq_len=2, **options))
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-3", "checkpoint-4"]


KILLED = """
import os, signal, sys
import torch
from chatglm.training.run import main

saved = torch.save
def save(content, path, *args, **kwargs):
    if "checkpoint-2" in str(path):
        with open(path, "wb") as file:
            file.write(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    return saved(content, path, *args, **kwargs)
torch.save = save
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.xdist_group("programs")
def test_a_run_killed_while_saving_resumes_from_the_checkpoint_before(base: Path, rows: Path, tmp_path: Path) -> None:
    words = flags(base, rows, tmp_path, do_train=True, pre_seq_len=2, save_steps=1, max_steps=3)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ended = forking.run([sys.executable, "-c", KILLED, *words], env=environment, capture_output=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()[-2000:]
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-1"]
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-1"]
    assert main([*words, "--resume_from_checkpoint", "true"]) == 0
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]
    assert not (tmp_path / ".unfinished").exists()


def test_training_continues_from_a_prefix(base: Path, rows: Path, tmp_path: Path) -> None:
    run(arguments(base, rows, tmp_path / "a", do_train=True, pre_seq_len=2))
    options = {"do_train": True, "ptuning_checkpoint": tmp_path / "a", "max_steps": 1, "learning_rate": 0.0}
    run(arguments(base, rows, tmp_path / "b", **options))
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert all(torch.equal(one[name], other[name]) for name in one)
    with pytest.raises(InvalidRequestError, match=r"--pre_seq_len is 7, but the prefix in .* has 2"):
        run(arguments(base, rows, tmp_path / "c", pre_seq_len=7, **options))


def test_training_continues_from_upstreams_file(base: Path, rows: Path, tmp_path: Path) -> None:
    name = "transformer.prefix_encoder.embedding.weight"
    (tmp_path / "old").mkdir()
    torch.save({name: torch.randn(4, 2 * 2 * 32).half()}, tmp_path / "old" / "pytorch_model.bin")
    options = {"do_train": True, "ptuning_checkpoint": tmp_path / "old", "max_steps": 1, "learning_rate": 0.0}
    run(arguments(base, rows, tmp_path / "new", **options))
    old, new = torch.load(tmp_path / "old" / "pytorch_model.bin"), load_file(tmp_path / "new" / "model.safetensors")
    assert torch.equal(old[name].float(), new[name])


def test_a_nan_loss_ends_the_run(base: Path, rows: Path, tmp_path: Path) -> None:
    options = {"learning_rate": 1e38, "max_grad_norm": 0, "lr_scheduler_type": "constant", "save_strategy": "no"}
    with pytest.raises(TrainingError, match=r"The loss is (nan|inf) at step \d.*--learning_rate"):
        run(arguments(base, rows, tmp_path, do_train=True, pre_seq_len=2, prefix_projection=True, **options))
    assert checkpoints(tmp_path) == []


def test_a_loss_of_zero_ends_the_run(
    base: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(RecipeTrainer.__base__, "training_step", lambda *args, **kwargs: torch.zeros(()))
    assert main(flags(base, rows, tmp_path, do_train=True, pre_seq_len=2)) == 1
    assert "The loss is 0.0 at step 1; training was stopped." in capsys.readouterr().err


def test_broken_weights_are_not_saved(base: Path, rows: Path, tmp_path: Path) -> None:
    asked = arguments(base, rows, tmp_path, do_train=True, pre_seq_len=3)
    network: Any = load(base).model
    recipe = make_recipe("ptuning", network, "base", asked.model)
    network.transformer.prefix_encoder.embedding.weight.data[0, 0] = float("nan")
    with pytest.raises(TrainingError, match="holds NaN or infinity and was not saved"):
        recipe.save(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_data_is_read_before_a_model(rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "load", lambda *args, **kwargs: pytest.fail("a model was loaded"))
    with pytest.raises(InvalidRequestError, match=r'rows\.json, line 1: there is no column "question"'):
        run(arguments(tmp_path, rows, tmp_path, do_train=True, pre_seq_len=2, prompt_column="question"))


def test_checkpoints_of_another_run_are_not_mixed_in(base: Path, rows: Path, tmp_path: Path) -> None:
    run(arguments(base, rows, tmp_path, do_train=True, pre_seq_len=2))
    with pytest.raises(InvalidRequestError, match="--resume_from_checkpoint true to go on"):
        run(arguments(base, rows, tmp_path, do_train=True, pre_seq_len=2))
    run(arguments(base, rows, tmp_path, do_train=True, pre_seq_len=2, max_steps=2, overwrite_output_dir=True))
    # The newest, not the one with the largest number, which the first run left.
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    with pytest.raises(MissingFileError, match="no whole checkpoint"):
        run(arguments(base, rows, tmp_path / "new", do_train=True, pre_seq_len=2, resume_from_checkpoint="true"))
    with pytest.raises(MismatchError, match="does not fit"):
        run(arguments(base, rows, tmp_path, do_train=True, pre_seq_len=3, resume_from_checkpoint="true"))


def test_rows_longer_than_the_context_are_errors(base: Path, rows: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="allow 116 tokens, but the model's context is 64"):
        run(arguments(base, rows, tmp_path, do_train=True, pre_seq_len=2, max_source_length=100))


def test_nothing_to_do(base: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments(base, rows, tmp_path / "out")) == {}
    assert "There is nothing to do" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_the_forecast_is_printed(base: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(arguments(base, rows, tmp_path, do_train=True, pre_seq_len=3, quantization_bit=4))
    told = capsys.readouterr().out
    # P * 2 * L * C of them; the base counts what its packed numbers stand for.
    network: Any = load(base).model
    num_all = sum(parameter.numel() for parameter in network.parameters()) + 3 * 2 * 2 * 32
    assert f"Training {3 * 2 * 2 * 32:,} of {num_all:,} parameters" in told
    assert told.count("input_ids [") == told.count("label_ids [") == told.count("labels ") == 1
