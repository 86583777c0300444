"""The scripts of ptuning/: each starts as it is, and variables change it."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from chatglm.training.records import Columns, read_records
from tests import forking
from tests.folders import make_folder

PTUNING = Path(__file__).parents[2] / "ptuning"
SCRIPTS = sorted(path.name for path in PTUNING.glob("*.sh") if path.name != "settings.sh")
# Takes the place of python and records its arguments.
RECORDER = """#!/bin/sh
printf '%s\\n' "$@" > "$RECORD"
"""


def _run(script: str, folder: Path, *words: str, **variables: str) -> list[str]:
    """The arguments that a script gives to python."""
    python = folder / "python"
    python.write_text(RECORDER, encoding="utf-8")
    python.chmod(0o755)
    record = folder / "record"
    environment = os.environ | variables | {"PYTHON": str(python), "RECORD": str(record)}
    subprocess.run(["bash", str(PTUNING / script), *words], env=environment, check=True, cwd=folder)
    return record.read_text(encoding="utf-8").splitlines()


def _value(words: list[str], flag: str) -> str:
    return words[words.index(flag) + 1]


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_starts_as_it_is(script: str, tmp_path: Path) -> None:
    words = _run(script, tmp_path)
    assert words[0] == ("web_demo.py" if script == "web_demo.sh" else "main.py")
    files = [_value(words, flag) for flag in ("--train_file", "--test_file", "--validation_file") if flag in words]
    assert all((PTUNING / file).is_file() for file in files)
    assert "" not in words


def test_upstreams_numbers_with_a_real_model(tmp_path: Path) -> None:
    words = _run("train.sh", tmp_path, MODEL="zai-org/chatglm-6b")
    expected = {
        "--train_file": "AdvertiseGen/train.json",
        "--output_dir": "output/adgen-chatglm-6b-pt-128-2e-2",
        "--max_steps": "3000",
        "--learning_rate": "2e-2",
        "--pre_seq_len": "128",
        "--quantization_bit": "4",
        "--gradient_accumulation_steps": "16",
    }
    assert {flag: _value(words, flag) for flag in expected} == expected
    evaluated = _run("evaluate.sh", tmp_path, MODEL="zai-org/chatglm-6b", STEP="3000")
    assert _value(evaluated, "--ptuning_checkpoint") == expected["--output_dir"] + "/checkpoint-3000"
    full = _run("evaluate_finetune.sh", tmp_path, MODEL="x")
    assert _value(full, "--model_name_or_path") == "output/adgen-chatglm-6b-ft-1e-4"


def test_variables_and_flags_change_it(tmp_path: Path) -> None:
    words = _run("train.sh", tmp_path, "--seed", "7", PRE_SEQ_LEN="9", LR="1e-3", BITS="8")
    assert (_value(words, "--pre_seq_len"), _value(words, "--quantization_bit")) == ("9", "8")
    assert _value(words, "--output_dir") == "output/demo-pt-9-1e-3"
    assert words[-2:] == ["--seed", "7"]
    assert "--quantization_bit" not in _run("train.sh", tmp_path)
    base = _run("evaluate.sh", tmp_path, CHECKPOINT="")
    assert "--ptuning_checkpoint" not in base
    assert "--forgetting_file" not in base


def test_relative_paths_start_where_the_script_is_called(tmp_path: Path) -> None:
    for name in ("chatglm-6b", "rows"):
        (tmp_path / name).mkdir()
    words = _run("train.sh", tmp_path, MODEL="chatglm-6b", DATA="rows", OUTPUT="out")
    assert _value(words, "--model_name_or_path") == str(tmp_path / "chatglm-6b")
    assert _value(words, "--train_file") == str(tmp_path / "rows" / "train.json")
    assert _value(words, "--output_dir") == str(tmp_path / "out")
    words = _run("evaluate.sh", tmp_path, MODEL="zai-org/chatglm-6b", DATA="data/clothes", CHECKPOINT=str(tmp_path))
    assert _value(words, "--model_name_or_path") == "zai-org/chatglm-6b"
    assert _value(words, "--test_file") == "data/clothes/dev.json"
    assert _value(words, "--ptuning_checkpoint") == str(tmp_path)


@pytest.mark.parametrize(("name", "columns"), [("clothes", ("content", "summary")), ("talks", ("prompt", "response"))])
def test_the_bundled_data_is_reproducible(name: str, columns: tuple[str, str], tmp_path: Path) -> None:
    subprocess.run([sys.executable, PTUNING / "data" / "make_clothes.py", "--folder", tmp_path], check=True)
    rows = {}
    for part in ("train.json", "dev.json"):
        stored = PTUNING / "data" / name / part
        assert stored.read_bytes() == (tmp_path / name / part).read_bytes()
        rows[part] = read_records(stored, Columns(*columns, "history" if name == "talks" else None)).rows
    prompts = {part: {(row.prompt, str(row.history)) for row in read} for part, read in rows.items()}
    assert prompts["train.json"].isdisjoint(prompts["dev.json"])


@pytest.mark.xdist_group("programs")
def test_training_and_evaluating_by_the_scripts(tmp_path: Path) -> None:
    """With a tiny model: what the first script writes is what the second reads. Only the first is a fresh process."""
    make_folder(tmp_path / "tiny", "safetensors", max_sequence_length=1024)
    variables = {"PYTHON": sys.executable, "MODEL": str(tmp_path / "tiny"), "OUTPUT": str(tmp_path / "out")}
    variables |= {"DATA": "data/clothes", "BATCH": "2", "ACCUMULATION": "1", "MAX_STEPS": "2", "BITS": ""}
    variables |= {"SOURCE_LENGTH": "300", "TARGET_LENGTH": "12"}
    command = ["bash", PTUNING / "train.sh", "--use_cpu"]
    subprocess.run(command, env=os.environ | variables, check=True, capture_output=True, cwd=tmp_path)
    words = _run("evaluate.sh", tmp_path, "--use_cpu", "--max_predict_samples", "3", **variables)
    forking.run([sys.executable, *words], cwd=PTUNING, check=True, capture_output=True)
    assert len((tmp_path / "out" / "generated_predictions.txt").read_text(encoding="utf-8").splitlines()) == 3
    figures = json.loads((tmp_path / "out" / "all_results.json").read_text(encoding="utf-8"))
    assert {"train_loss", "predict_bleu-4"} <= figures.keys()


def test_the_page_gets_the_flags_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("chatglm.ui.gradio.gradio_app")
    import chatglm.ui.gradio.gradio_app as web

    asked: list[Any] = []
    monkeypatch.setattr(web, "main", lambda words: asked.append(words) or 0)
    monkeypatch.setattr(sys, "argv", ["web_demo.py", "--ptuning_checkpoint", "out", "--pre_seq_len", "128"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    specification = importlib.util.spec_from_file_location("__main__", PTUNING / "web_demo.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    with pytest.raises(SystemExit) as caught:
        specification.loader.exec_module(module)
    assert caught.value.code == 0
    assert asked == [["--ptuning-checkpoint", "out"]]
