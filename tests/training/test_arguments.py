"""Arguments: upstream's command lines are understood, old flags too, and contradictions are told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from chatglm.errors import ChatGLMError, InvalidRequestError, MissingFileError
from chatglm.training.arguments import DROPPED, RENAMED, parse_arguments
from chatglm.training.web_arguments import page_flags

DATA = ["--train_file", "a.json", "--output_dir", "out"]
EVALUATED = [*DATA, "--validation_file", "b.json"]
UPSTREAM = """--do_train --train_file AdvertiseGen/train.json --validation_file AdvertiseGen/dev.json
--prompt_column content --response_column summary --overwrite_cache --model_name_or_path zai-org/chatglm-6b
--output_dir output/adgen-chatglm-6b-pt-128-2e-2 --overwrite_output_dir --max_source_length 64 --max_target_length 64
--per_device_train_batch_size 1 --per_device_eval_batch_size 1 --gradient_accumulation_steps 16
--predict_with_generate --max_steps 3000 --logging_steps 10 --save_steps 1000 --learning_rate 2e-2 --pre_seq_len 128
--quantization_bit 4 --use_cpu"""


def test_upstreams_command_line() -> None:
    read = parse_arguments(UPSTREAM.split())
    assert read.method == "ptuning"
    assert (read.model.pre_seq_len, read.model.quantization_bit, read.model.prefix_projection) == (128, 4, False)
    assert (read.data.max_source_length, read.data.prompt_column) == (64, "content")
    assert (read.training.max_steps, read.training.learning_rate, read.training.seed) == (3000, 2e-2, 42)
    assert read.overwrite_output_dir
    assert read.warnings == ()


def test_a_json_file_of_arguments(tmp_path: Path) -> None:
    values: dict[str, Any] = {"do_train": True, "train_file": "a.json", "output_dir": str(tmp_path), "pre_seq_len": 8}
    values |= {"overwrite_output_dir": True, "learning_rate": 0.5, "history_column": None, "report_to": ["none"]}
    (tmp_path / "run.json").write_text(json.dumps(values), encoding="utf-8-sig")
    read = parse_arguments([str(tmp_path / "run.json")])
    assert (read.model.pre_seq_len, read.training.learning_rate, read.overwrite_output_dir) == (8, 0.5, True)
    with pytest.raises(MissingFileError, match="There is no file"):
        parse_arguments([str(tmp_path / "absent.json")])
    (tmp_path / "run.json").write_text("[1]", encoding="utf-8")
    with pytest.raises(InvalidRequestError, match="does not hold an object"):
        parse_arguments([str(tmp_path / "run.json")])
    (tmp_path / "run.json").write_text("{", encoding="utf-8")
    with pytest.raises(InvalidRequestError, match="is not JSON"):
        parse_arguments([str(tmp_path / "run.json")])


OLD_VALUES = {"no_cuda": [], "optim": ["adamw_hf"], "evaluation_strategy": ["steps"], "warmup_ratio": ["0.1"]}


@pytest.mark.parametrize("name", RENAMED)
def test_renamed_flags_are_honoured(name: str) -> None:
    read = parse_arguments([*EVALUATED, f"--{name}", *OLD_VALUES.get(name, ["3"]), "--use_cpu"])
    new = RENAMED[name][0]
    expected = {"use_cpu": True, "optim": "adamw_torch", "eval_strategy": "steps", "warmup_steps": 0.1}.get(new, 3)
    assert getattr(read.training, new) == expected


@pytest.mark.parametrize("name", DROPPED)
def test_dropped_flags_are_answered_with_one_line(name: str) -> None:
    read = parse_arguments([*DATA, f"--{name}", "1"])
    assert len(read.warnings) == 1
    assert read.warnings[0].startswith(f"--{name} has no effect: ")


@pytest.mark.parametrize("words", [["--overwrite_output_dir"], ["--overwrite_output_dir=True"], []])
def test_overwriting_is_asked_for(words: list[str]) -> None:
    assert parse_arguments([*DATA, *words]).overwrite_output_dir is bool(words)


METHODS = {
    "ptuning": ["--pre_seq_len", "4"],
    "lora": ["--lora_rank", "4"],
    "full": ["--do_train"],
    "base": [],
}


@pytest.mark.parametrize("method", METHODS)
def test_what_is_trained(method: str) -> None:
    assert parse_arguments([*DATA, *METHODS[method]]).method == method


MISTAKES = {
    "No data is given": [],
    "A dataset name alone is not enough": ["--dataset_name", "x"],
    "--do_predict needs --test_file": [*DATA, "--do_predict"],
    "--do_eval needs --validation_file": [*DATA, "--do_eval"],
    "--do_train needs --train_file": ["--test_file", "a.json", "--do_train"],
    "--prefix_projection needs --pre_seq_len": [*DATA, "--prefix_projection"],
    "--pre_seq_len must be at least 1, not -3": [*DATA, "--pre_seq_len", "-3"],
    "--max_target_length must be at least 2, not 1": [*DATA, "--max_target_length", "1"],
    "--recompute is 'maybe'": [*DATA, "--recompute", "maybe"],
    "The arguments cannot be used": [*DATA, "--logging_steps", "0"],
}


@pytest.mark.parametrize("words", MISTAKES)
def test_contradictions_are_errors(words: str) -> None:
    with pytest.raises(ChatGLMError, match=words.replace("(", r"\(")):
        parse_arguments(MISTAKES[words])


def test_unknown_flags_end_with_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises((SystemExit, InvalidRequestError)) as caught:
        parse_arguments([*DATA, "--no_such_flag", "1"])
    assert "no_such_flag" in capsys.readouterr().err + str(caught.value)


def test_the_page_takes_training_arguments(tmp_path: Path) -> None:
    words = "--model_name_or_path demo --ptuning_checkpoint=out --pre_seq_len 128 --prefix_projection --port 7000"
    assert page_flags([*words.split(), "--quantization_bit", "4"]) == [
        *("--model", "demo", "--ptuning-checkpoint", "out", "--port", "7000", "--quantize", "4"),
    ]
    path = tmp_path / "page.json"
    path.write_text('{"model_name_or_path": "demo", "pre_seq_len": 8, "config_name": null}', encoding="utf-8")
    assert page_flags([str(path)]) == ["--model", "demo"]
    with pytest.raises(SystemExit, match="cannot be read"):
        page_flags([str(tmp_path / "absent.json")])
