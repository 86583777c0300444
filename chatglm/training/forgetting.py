"""What training made a model forget: general questions, answered before and after, in one table.

Knows: the table and its sums. Does not know how answers are made, or what was trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from chatglm.training.recipes import write_whole

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
    write_whole(path, "\n".join(lines).encode())
    return path


def summary(before: Sequence[str], after: Sequence[str]) -> str:
    """How many answers stayed, and how alike the others are, in one sentence."""
    same = sum(old == new for old, new in zip(before, after, strict=True))
    alike = sum(_likeness(old, new) for old, new in zip(before, after, strict=True)) / max(1, len(before))
    return (
        f"{same} of {len(before)} answers to general questions are the same as before; "
        f"on average {100 * alike:.0f} % of the characters are."
    )


def _likeness(old: str, new: str) -> float:
    """Share of two texts that is the same in both, 0 to 1; 1 for two empty ones."""
    from difflib import SequenceMatcher

    return SequenceMatcher(None, old, new, autojunk=False).ratio()


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", "<br>")
