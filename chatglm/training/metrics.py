"""Scores of answers against labels: the mean over all answers in percent, as in upstream's published table.

    bleu-4      nltk's sentence BLEU of the characters, with its third smoothing
    rouge-n     F of rouge_chinese over jieba's words

Where upstream's script would stop, an empty answer scores 0, and so does a pair in which one side has no words.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from chatglm.errors import InvalidRequestError

NAMES = ("rouge-1", "rouge-2", "rouge-l", "bleu-4")


def score_texts(predictions: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
    """Mean scores in percent, by name.

    Raises:
        InvalidRequestError: a library is not installed, or there is nothing to score.
    """
    check_installed()
    if not predictions:
        raise InvalidRequestError("There are no answers to score.")
    rows = [score_pair(prediction, label) for prediction, label in zip(predictions, labels, strict=True)]
    return {name: sum(row[name] for row in rows) / len(rows) for name in NAMES}


def score_pair(prediction: str, label: str) -> dict[str, float]:
    """Scores of one answer in percent, rounded to 4 decimals as upstream rounds them."""
    scores = {**_rouge(prediction, label), "bleu-4": _bleu(prediction, label)}
    return {name: round(100 * value, 4) for name, value in scores.items()}


def check_installed() -> None:
    """Raise InvalidRequestError unless the libraries are installed; called before answers are generated."""
    for name in ("jieba", "nltk.translate.bleu_score", "rouge_chinese"):
        try:
            _library(name)
        except ImportError:
            raise InvalidRequestError(
                f"Scoring answers needs {name.partition('.')[0]}.", "Run `pip install -r requirements-train.txt`."
            ) from None


def _library(name: str) -> Any:
    """The module of that name, without the warnings of its own age."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return import_module(name)


def _bleu(prediction: str, label: str) -> float:
    if not prediction or not label:
        return 0.0
    library = _library("nltk.translate.bleu_score")
    smoothing = library.SmoothingFunction().method3
    return float(library.sentence_bleu([list(label)], list(prediction), smoothing_function=smoothing))


def _rouge(prediction: str, label: str) -> dict[str, float]:
    hypothesis, reference = _words(prediction), _words(label)
    if not hypothesis.split() or not reference.split():
        return dict.fromkeys(NAMES[:3], 0.0)
    scores = _library("rouge_chinese").Rouge().get_scores(hypothesis, reference)[0]
    return {name: float(scores[name]["f"]) for name in NAMES[:3]}


def _words(text: str) -> str:
    jieba = _library("jieba")
    jieba.setLogLevel(logging.WARNING)
    return " ".join(jieba.cut(text))
