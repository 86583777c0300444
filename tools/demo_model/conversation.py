"""The shape of a conversation, shared by the data generator, the trainer and the scorer."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Turn = tuple[str, str]  # (query, answer)

NAME = "GLM-Tiny"


@dataclass(frozen=True)
class Sample:
    """A conversation to learn from: the last answer is the target, what stands before it is the prompt."""

    kind: str
    turns: tuple[Turn, ...]


def one(kind: str, query: str, answer: str) -> Sample:
    """Return a sample of a single turn."""
    return Sample(kind, ((query, answer),))


def normalise(text: str) -> str:
    """Reduce a phrasing to what counts when two are compared: lower-case word characters."""
    return re.sub(r"[\W_]+", "", text.lower())


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read a file with one JSON object per line."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def wordings(name: str) -> dict[str, Any]:
    """Read the word lists and sentence patterns of one generator."""
    return json.loads((Path(__file__).parent / "data" / "wordings" / f"{name}.json").read_text(encoding="utf-8"))


def forbidden_phrasings(data_dir: Path) -> frozenset[str]:
    """Return the normalised phrasings that must never be trained on: held-out ones and the list's unseen ones."""
    held = [row["q"] for row in read_jsonl(data_dir / "held_phrasing.jsonl")]
    listed = [turn for row in read_jsonl(data_dir / "eval100.jsonl") if row["kind"] == "para" for turn in row["turns"]]
    return frozenset(normalise(text) for text in (*held, *listed))


def is_forbidden(turns: Sequence[Turn], forbidden: frozenset[str]) -> bool:
    """Say whether any query of a conversation is a phrasing kept for evaluation."""
    return any(normalise(query) in forbidden for query, _ in turns)
