"""Answers and their scores: a batch gives what its rows give alone, and one command evaluates every kind of model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from chatglm.loading import load
from chatglm.pipeline import load_pipeline
from chatglm.training.answers import Answering, answer
from chatglm.training.encoding import Encoder, Lengths
from chatglm.training.records import Record
from chatglm.training.run import run
from tests.training.data import ROWS, arguments

PROMPTS = ["hello", "你好，天气很好", "the quick brown fox jumps", "你"]


@pytest.fixture(scope="module")
def prefix(base: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("prefix")
    run(arguments(base, rows, output, do_train=True, pre_seq_len=3, report_to="none"))
    return output


@pytest.mark.parametrize("options", [{}, {"quantize": 8}, {"dtype": "bf16"}, {"prefix": True}])
@pytest.mark.parametrize("num_beams", [1, 2])
def test_a_batch_equals_its_rows_alone(options: dict[str, Any], num_beams: int, base: Path, prefix: Path) -> None:
    wanted = dict(options)
    loaded = load(base, ptuning_checkpoint=prefix if wanted.pop("prefix", None) else None, **wanted)
    encode = Encoder(loaded.model.encode_chat, loaded.tokenizer, Lengths(30, 20), spec=loaded.model.spec)
    prompts = [encode(Record(text, "x")).prompt_ids for text in PROMPTS]
    batched = answer(loaded.model, loaded.tokenizer, prompts, Answering(8, 4, num_beams))
    alone = [answer(loaded.model, loaded.tokenizer, [ids], Answering(8, 1, num_beams))[0] for ids in prompts]
    in_pairs = answer(loaded.model, loaded.tokenizer, prompts, Answering(8, 2, num_beams))
    assert batched == alone == in_pairs


@pytest.mark.slow
def test_greedy_answers_are_those_of_chat(base: Path, prefix: Path, rows: Path, tmp_path: Path) -> None:
    run(arguments(base, rows, tmp_path, do_predict=True, ptuning_checkpoint=prefix))
    lines = (tmp_path / "generated_predictions.txt").read_text(encoding="utf-8").splitlines()
    written = [json.loads(line) for line in lines]
    assert [row["labels"] for row in written] == [row["summary"] for row in ROWS]
    with load_pipeline(base, ptuning_checkpoint=prefix) as pipe:
        chatted = [pipe.chat(row["content"], temperature=0, max_new_tokens=16)[0] for row in ROWS]
    assert [row["predict"] for row in written] == chatted


def test_sampling_is_asked_for(base: Path, rows: Path, tmp_path: Path) -> None:
    texts = []
    for number in range(2):
        run(arguments(base, rows, tmp_path / str(number), do_predict=True, do_sample=True))
        texts.append((tmp_path / str(number) / "generated_predictions.txt").read_text(encoding="utf-8"))
    assert texts[0] != texts[1]


def test_results_have_upstreams_names(base: Path, rows: Path, tmp_path: Path) -> None:
    figures = run(arguments(base, rows, tmp_path, do_predict=True, do_eval=True, predict_with_generate=True))
    names = ("rouge-1", "rouge-2", "rouge-l", "bleu-4", "samples")
    assert {f"{mode}_{name}" for mode in ("predict", "eval") for name in names} | {"eval_loss"} <= set(figures)
    assert figures["predict_samples"] == len(ROWS)
    written = json.loads((tmp_path / "all_results.json").read_text(encoding="utf-8"))
    assert written == figures


def test_what_was_forgotten_is_reported(
    base: Path, prefix: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = tmp_path / "general.jsonl"
    questions.write_text('{"prompt": "hello"}\n{"prompt": "你好 | 天气"}\n', encoding="utf-8")
    options = {"do_predict": True, "ptuning_checkpoint": prefix, "forgetting_file": questions}
    run(arguments(base, rows, tmp_path, **options))
    report = (tmp_path / "forgetting.md").read_text(encoding="utf-8")
    with load_pipeline(base) as pipe:
        before = pipe.chat("hello", temperature=0, max_new_tokens=16)[0]
    assert f"| hello | {before.replace('|', chr(92) + '|')} |" in report
    assert "你好 \\| 天气" in report
    assert "of 2 answers to general questions are the same as before" in capsys.readouterr().out


def test_limits_on_rows(base: Path, rows: Path, tmp_path: Path) -> None:
    figures = run(arguments(base, rows, tmp_path, do_predict=True, max_predict_samples=3))
    assert figures["predict_samples"] == 3
