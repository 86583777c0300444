"""The documents run: README snippets that need no download are executed, and links point at files that exist."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

from chatglm.demo import CHECKPOINT
from tests import forking

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    path
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/README.md"), *ROOT.glob("*/*/README.md"))
)
LINK = re.compile(r"\]\(([^)#:]+)\)")


def code_blocks(path: Path, language: str) -> list[str]:
    """The fenced blocks of one language ("" for blocks without), in order."""
    blocks: list[str] = []
    fence: str | None = None
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.startswith("```"):
            fence = line[3:].strip() if fence is None else None
            blocks += [""] if fence == language else []
        elif fence == language:
            blocks[-1] += line
    return blocks


@pytest.mark.xdist_group("programs")
def test_snippets_run_with_the_bundled_model() -> None:
    """The real folder in a snippet is replaced by the bundled one; nothing else is changed."""
    found = code_blocks(ROOT / "README.md", "python")
    assert len(found) >= 2
    for code in found:
        argv = [sys.executable, "-c", code.replace('"chatglm-6b"', repr(str(CHECKPOINT)))]
        result = forking.run(argv, cwd=ROOT, capture_output=True, encoding="utf-8")
        assert result.returncode == 0, result.stderr


def test_both_readmes_hold_the_same_snippets() -> None:
    """Only strings and comments are translated."""
    chinese, english = (
        [ast.dump(_without_strings(block)) for block in code_blocks(ROOT / name, "python")]
        for name in ("README.md", "README_en.md")
    )
    assert chinese == english


def _without_strings(code: str) -> ast.Module:
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node.value = ""
    return tree


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_point_at_files(path: Path) -> None:
    for target in LINK.findall(path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target


def test_both_readmes_hold_the_same_commands() -> None:
    chinese, english = (
        [line.split("#")[0].split() for block in code_blocks(ROOT / name, "") for line in block.splitlines()]
        for name in ("README.md", "README_en.md")
    )
    assert chinese == english
