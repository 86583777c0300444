"""`python -m chatglm quantize`: output, files, and one line for each wrong request."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from chatglm.__main__ import main
from chatglm.loading import load
from tests.conversion.text import write_conversations, write_text
from tests.folders import make_folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    make_folder(tmp_path / "source")
    return tmp_path / "source"


def report_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "quantization_report.json").read_text(encoding="utf-8"))


def test_gptq_with_everything(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = write_text(tmp_path / "text.txt")
    chats = write_conversations(tmp_path / "chats.jsonl", [("hello world", "how are you")] * 9)
    target = tmp_path / "target"
    flags = f"--bits 4 --group-size 32 --embeddings 8 --method gptq --calibration {text} --seed 3 --damping 0.02"
    assert main(["quantize", str(source), str(target), *flags.split(), "--evaluate", str(chats)]) == 0
    output = capsys.readouterr()
    assert output.err == ""
    lines = output.out.splitlines()
    assert " ".join(lines[0].split()) == "layer weight error output error if rounded held-out output error"
    layers = ["word_embeddings", "lm_head", "query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]
    assert sorted(line.split()[0] for line in lines[1:7]) == sorted(layers)
    assert lines[7].startswith("perplexity ")
    assert str(target) in lines[8]
    report = report_of(target)
    assert {key: report[key] for key in ("method", "seed", "calibration_text", "evaluation_text")} == {
        "method": "gptq", "seed": 3, "calibration_text": "text.txt", "evaluation_text": "chats.jsonl",
    }  # fmt: skip
    assert report["calibration_tokens"] > 256
    assert len(report["layers"]) == 10
    assert report["layers"][-1]["damping"] == 0.02
    assert {"weight", "output", "output_if_rounded", "held_out_output", "damping"} < report["layers"][-1].keys()
    assert set(report["evaluation"]) == {
        "num_tokens", "perplexity_before", "perplexity_after", "agreement", "logit_error",
    }  # fmt: skip
    assert str(tmp_path) not in json.dumps(report)
    config = load(target, device="cpu").model.config
    assert (config.quantization_bit, config.quantization_embedding_bit, config.quantization_group_size) == (4, 8, 32)


def test_rtn_reports_its_errors(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantize", str(source), str(tmp_path / "target"), "--embeddings"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["layer", "weight", "error"]
    assert report_of(tmp_path / "target")["quantization_embeddings"] is True
    assert "evaluation" not in report_of(tmp_path / "target")
    assert set(report_of(tmp_path / "target")["layers"][0]) == {"name", "weight"}
    assert main(["quantize", str(source), str(tmp_path / "layers"), "--bits", "8"]) == 0
    assert main(["quantize", str(tmp_path / "layers"), str(tmp_path / "both"), "--embeddings"]) == 0
    assert report_of(tmp_path / "both")["quantization_embedding_bit"] == 8


def test_without_a_text_the_bundled_one_is_named(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--method", "gptq", "--calibration-tokens", "400"]
    assert main(["quantize", str(source), str(tmp_path / "target"), *flags]) == 0
    assert "Text of your own domain does better" in capsys.readouterr().err
    assert report_of(tmp_path / "target")["calibration_text"] == "bundled conversations"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--group-size", "64"], "32 columns does not divide into groups of 64"),
        (["--calibration", "text.txt"], "Add --method gptq"),
        (["--method", "gptq", "--calibration", "nowhere.txt"], "nowhere.txt cannot be read"),
        (["--method", "gptq", "--calibration", "empty.txt"], "empty.txt has 0 tokens of text; at least 256"),
        (["--method", "gptq", "--calibration", "text.txt", "--damping", "0"], "damping is a number above 0"),
        (["--evaluate", "empty.txt"], "at least 32 are needed"),
        (["--device", "abacus"], "'abacus' is not a device"),
    ],
)
def test_wrong_requests_are_one_line_and_nothing_is_written(
    flags: list[str], message: str, source: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path / "text.txt")
    (tmp_path / "empty.txt").touch()
    assert main(["quantize", str(source), str(tmp_path / "target"), *flags]) == 1
    output = capsys.readouterr()
    assert message in output.err
    assert len(output.err.splitlines()) == 1
    assert output.out == ""
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("flags", [["--bits", "5"], ["--group-size", "16"], ["--embeddings", "2"], ["--method", "x"]])
def test_unknown_values_are_usage_errors(flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["quantize", str(tmp_path / "a"), str(tmp_path / "b"), *flags])
    assert caught.value.code == 2
    assert "invalid choice" in capsys.readouterr().err


def test_help_names_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["quantize", "--help"])
    text = capsys.readouterr().out
    for flag in ("bits", "group-size", "embeddings", "method", "calibration", "seed", "damping", "evaluate", "device"):
        assert f"--{flag}" in text
