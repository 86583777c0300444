"""The GPU benchmark on the CPU, tiny: every part runs, its checks pass, figures are whole."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

COMMAND = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--tiny", "--bits", "16", "4"]
ROOT = Path(__file__).resolve().parents[2]


def test_every_part_runs_and_compares(tmp_path: Path) -> None:
    first = subprocess.run(COMMAND, cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert first.returncode == 0, first.stdout[-2000:] + first.stderr[-2000:]
    result = json.loads(first.stdout.splitlines()[-1])
    assert result["passed"]
    assert set(result["checks"]) == {"16 bits", "4 bits"}
    kinds = {"product", "step", "prompt", "chats", "mixed", "original"}
    assert {row["kind"] for row in result["rows"]} == kinds
    for row in result["rows"]:
        figures = [row[name] for name in ("ms", "floor_ms", "fraction", "gb", "gflop")]
        assert all(math.isfinite(figure) and figure > 0 for figure in figures), row
        assert math.isclose(row["fraction"], row["floor_ms"] / row["ms"], rel_tol=1e-9)
    (tmp_path / "earlier.json").write_text(first.stdout)
    only = ["--only", "step", "--compare", str(tmp_path / "earlier.json")]
    second = subprocess.run([*COMMAND, *only], cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert second.stdout.count("times as fast: kind=step") == 4, second.stdout[-2000:] + second.stderr[-2000:]
