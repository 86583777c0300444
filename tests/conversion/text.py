"""Texts for tests of calibration and evaluation.

Knows: the two forms in which texts are given, and conversations that the demo model can hold. Does not know models.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from chatglm.conversion.samples import BUNDLED

HELD_OUT = Path(__file__).parents[2] / "tools" / "demo_model" / "data" / "held_phrasing.jsonl"
WORDS = ("hello world, how are you ", "the quick brown fox ", "你好，世界。", "天气很好 ")


def write_text(path: Path, num_words: int = 400, seed: int = 0) -> Path:
    """Words of the tiny tokenizer, in an order of their own."""
    path.write_text(
        "".join(WORDS[(i * i + seed * i + i // 3) % len(WORDS)] for i in range(num_words)), encoding="utf-8"
    )
    return path


def write_conversations(path: Path, pairs: Iterable[tuple[str, str]]) -> Path:
    lines = [json.dumps({"prompt": prompt, "response": response}, ensure_ascii=False) for prompt, response in pairs]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def held_out_conversations(path: Path) -> Path:
    """Questions in wordings that the demo model was not trained on, with answers that are not in the bundled text."""
    bundled = BUNDLED.read_text(encoding="utf-8")
    rows = [json.loads(line) for line in HELD_OUT.read_text(encoding="utf-8").splitlines()]
    return write_conversations(path, [(r["q"], r["answers"][0]) for r in rows if r["answers"][0] not in bundled])
