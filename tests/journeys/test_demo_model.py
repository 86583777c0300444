"""The bundled model as a new user meets it: its acceptance list, answered through the package's own chat path."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from chatglm.demo import CHECKPOINT
from chatglm.pipeline import Pipeline, load_pipeline

LIST = Path(__file__).parents[2] / "tools" / "demo_model" / "data" / "eval100.jsonl"
ENTRIES: list[dict[str, Any]] = [json.loads(line) for line in LIST.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def pipe() -> Iterator[Pipeline]:
    with load_pipeline() as pipeline:
        yield pipeline


def reply_to(pipe: Pipeline, turns: list[str]) -> str:
    history: list[tuple[str, str]] = []
    for query in turns:
        _, history = pipe.chat(query, history, temperature=0)
    return history[-1][1]


@pytest.fixture(scope="module")
def replies(pipe: Pipeline) -> list[str]:
    """One reply for each entry; the engine answers 16 at once."""
    with ThreadPoolExecutor(16) as callers:
        return list(callers.map(partial(reply_to, pipe), [entry["turns"] for entry in ENTRIES]))


def is_right(entry: dict[str, Any], reply: str) -> bool:
    return any(re.search(pattern, reply, re.DOTALL) for pattern in entry["any"])


def test_size_and_contents(pipe: Pipeline) -> None:
    """One matrix for the tied head, nothing else in the folder, small enough for a repository."""
    assert sum(path.stat().st_size for path in CHECKPOINT.iterdir()) < 17_000_000
    assert pipe.is_demo


def test_first_inputs(replies: list[str]) -> None:
    """A miss among the basics blocks a release."""
    pairs = [(entry, reply) for entry, reply in zip(ENTRIES, replies, strict=True) if entry["kind"] == "basic"]
    assert pairs
    assert [(entry["turns"], reply) for entry, reply in pairs if not is_right(entry, reply)] == []


def test_acceptance_list(pipe: Pipeline, replies: list[str]) -> None:
    assert max(len(pipe.tokenizer.encode_plain(reply)) for reply in replies) <= 220
    right: Counter[str] = Counter()
    for entry, reply in zip(ENTRIES, replies, strict=True):
        right[entry["kind"]] += is_right(entry, reply)
    assert right["para"] >= 36
    assert right["gen"] >= 11
    assert right["multi"] >= 6
    assert right["ood"] >= 11
    assert right.total() >= 85


def test_streaming_shows_word_by_word(pipe: Pipeline) -> None:
    texts = [delta.text for delta in pipe.stream("你好", temperature=0) if delta.text]
    assert len(texts) >= 5
    assert "".join(texts) == pipe.chat("你好", temperature=0)[0]


def test_model_knows_the_users_name_across_rounds(pipe: Pipeline) -> None:
    assert "小明" in reply_to(pipe, ["我叫小明", "我叫什么名字"])
