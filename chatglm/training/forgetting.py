"""General questions, answered before and after training, in one table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from chatglm.atomic import write_text

REPORT_NAME = "forgetting.md"


def write_report(folder: Path, prompts: Sequence[str], before: Sequence[str], after: Sequence[str]) -> Path:
    """Write the table of answers and a sentence about it as Markdown; the file's path."""
    lines = [
        "# Before and after training",
        "",
        summary(before, after),
        "",
        "| prompt | before | after |",
        "| --- | --- | --- |",
        *(f"| {' | '.join(map(_cell, row))} |" for row in zip(prompts, before, after, strict=True)),
        "",
    ]
    path = folder / REPORT_NAME
    write_text(path, "\n".join(lines))
    return path


def summary(before: Sequence[str], after: Sequence[str]) -> str:
    """How many answers are the same, and how similar the others are, in one sentence."""
    same = sum(old == new for old, new in zip(before, after, strict=True))
    similarity = sum(_similarity(old, new) for old, new in zip(before, after, strict=True)) / max(1, len(before))
    return (
        f"{same} of {len(before)} answers to general questions are the same as before; "
        f"on average {100 * similarity:.0f} % of the characters are."
    )


def _similarity(old: str, new: str) -> float:
    from difflib import SequenceMatcher

    return SequenceMatcher(None, old, new, autojunk=False).ratio()


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", "<br>")
