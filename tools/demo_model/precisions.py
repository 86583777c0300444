"""The fixed list (or another one) answered in every precision: scores, and how many replies equal those in float32.

python -m tools.demo_model.precisions chatglm/demo/checkpoint
python -m tools.demo_model.precisions chatglm/demo/checkpoint --list other.jsonl
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chatglm.pipeline import load_pipeline
from tools.demo_model.conversation import read_jsonl
from tools.demo_model.samples import DATA_DIR

PRECISIONS: dict[str, dict[str, Any]] = {
    "fp32": {"dtype": "fp32"},
    "fp16": {"dtype": "fp16"},
    "bf16": {"dtype": "bf16"},
    "int8": {"dtype": "fp32", "quantize": 8},
    "int4": {"dtype": "fp32", "quantize": 4},
}


def replies(folder: Path, rows: Sequence[dict[str, Any]], options: dict[str, Any]) -> list[str]:
    """Return the reply to the last turn of each row."""
    with load_pipeline(folder, device="cpu", **options) as pipeline:
        last = []
        for row in rows:
            history: list[tuple[str, str]] = []
            for query in row["turns"]:
                _, history = pipeline.chat(query, history, temperature=0)
            last.append(history[-1][1])
    return last


def is_right(row: dict[str, Any], reply: str) -> bool:
    """Return whether any of the row's expressions is found in the reply."""
    return any(re.search(expression, reply, re.DOTALL) for expression in row["any"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--list", type=Path, default=DATA_DIR / "eval100.jsonl", help="rows with turns and any")
    parser.add_argument("--only", nargs="*", default=list(PRECISIONS), choices=list(PRECISIONS))
    parser.add_argument("--show", action="store_true", help="print what was missed in the first precision")
    args = parser.parse_args()
    rows = read_jsonl(args.list)
    reference: list[str] = []
    result: dict[str, Any] = {}
    for name in args.only:
        answered = replies(args.folder, rows, PRECISIONS[name])
        reference = reference or answered
        right = [is_right(row, reply) for row, reply in zip(rows, answered, strict=True)]
        same = sum(a == b for a, b in zip(answered, reference, strict=True))
        result[name] = {"right": sum(right), "same_replies": same, "of": len(rows)}
        print(f"{name:6} {sum(right):4} right of {len(rows)}, {same} replies as in {args.only[0]}")
        if args.show and answered is reference:
            for row, reply, good in zip(rows, answered, right, strict=True):
                if not good:
                    print(f"  {row['kind']}: {' / '.join(row['turns'])} -> {reply[:90]!r}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
