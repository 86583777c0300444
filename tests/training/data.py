"""Small data sets and arguments for training tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from chatglm.training.arguments import Arguments, parse_arguments

ROWS = [
    {"content": f"{question} {number}", "summary": answer}
    for number in range(6)
    for question, answer in (("hello", "the quick brown fox"), ("你好", "天气很好"))
]


def write_rows(path: Path, rows: list[dict[str, Any]] | None = None) -> Path:
    """Write rows as JSON lines."""
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in (ROWS if rows is None else rows))
    path.write_text("".join(lines), encoding="utf-8")
    return path


def flags(model: Path, data: Path, output: Path, **more: Any) -> list[str]:
    """Flags of a run of four steps; True = a switch, None = leave the flag out."""
    chosen: dict[str, Any] = {
        "model_name_or_path": model,
        "train_file": data,
        "validation_file": data,
        "test_file": data,
        "output_dir": output,
        "max_source_length": 24,
        "max_target_length": 16,
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 4,
        "max_steps": 4,
        "logging_steps": 1,
        "learning_rate": 0.05,
        "use_cpu": True,
        "disable_tqdm": "true",
    } | more
    words: list[str] = []
    for name, value in chosen.items():
        if value is not None:
            words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return words


def arguments(model: Path, data: Path, output: Path, **more: Any) -> Arguments:
    return parse_arguments(flags(model, data, output, **more))
