"""Scores of answers: as the libraries define them, and as counted by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatglm.errors import InvalidRequestError
from chatglm.training.metrics import NAMES, score_pair, score_texts
from chatglm.training.run import main
from tests.training.data import flags

PAIRS = [
    ("今天天气很好", "今天天气不错"),
    ("这款衬衫选用黑色，看上去沉稳大方。", "黑色的衬衫，第一眼就让人觉得沉稳大方。"),
    ("the quick brown fox", "the quick red fox"),
]
TEXTS = st.text("今天气很好，。 ab.\n", max_size=30)


def test_counted_by_hand() -> None:
    scores = score_pair(*PAIRS[0])
    # Characters: 4 of 6, 3 of 5 pairs, 2 of 4 triples, 1 of 3 fours; equal lengths. Words: 今天天气 of 3 and of 2.
    assert scores["bleu-4"] == pytest.approx(100 * (4 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25, abs=1e-3)
    assert scores["rouge-1"] == scores["rouge-l"] == pytest.approx(100 * 2 * (1 / 3) * (1 / 2) / (1 / 3 + 1 / 2))
    assert scores["rouge-2"] == 0


@pytest.mark.parametrize("pair", PAIRS)
def test_scores_equal_those_of_the_libraries(pair: tuple[str, str]) -> None:
    import jieba
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
    from rouge_chinese import Rouge

    prediction, label = pair
    rouge = Rouge().get_scores(" ".join(jieba.cut(prediction)), " ".join(jieba.cut(label)))[0]
    bleu = sentence_bleu([list(label)], list(prediction), smoothing_function=SmoothingFunction().method3)
    expected = {name: round(rouge[name]["f"] * 100, 4) for name in NAMES[:3]} | {"bleu-4": round(bleu * 100, 4)}
    assert score_pair(*pair) == expected


@settings(max_examples=80, deadline=None, derandomize=True)
@given(prediction=TEXTS, label=TEXTS)
def test_every_pair_has_scores_between_0_and_100(prediction: str, label: str) -> None:
    scores = score_pair(prediction, label)
    assert set(scores) == set(NAMES)
    assert all(0 <= value <= 100.0001 for value in scores.values())
    if not prediction.strip() or not label.strip():
        assert scores["rouge-1"] == 0


def test_means_over_all_answers() -> None:
    predictions, labels = zip(*PAIRS, strict=True)
    rows = [score_pair(*pair) for pair in PAIRS]
    means = score_texts(predictions, labels)
    assert means == {name: pytest.approx(sum(row[name] for row in rows) / 3) for name in NAMES}
    with pytest.raises(InvalidRequestError, match="no answers"):
        score_texts([], [])


def test_without_a_library_nothing_is_loaded(
    base: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "jieba", None)
    assert main(flags(base, rows, tmp_path, do_predict=True)) == 1
    assert capsys.readouterr().err == ("Scoring answers needs jieba. Run `pip install -r requirements-train.txt`.\n")
