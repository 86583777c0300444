"""Schemathesis: requests valid by the OpenAPI schema are answered, others rejected, and nothing breaks.

The model has a context of 48 tokens, so that every answer is short.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from chatglm.pipeline import load_pipeline
from tests.folders import make_folder
from tests.serving.servers import Server, eventually, serving

CONFIG = Path(__file__).with_name("schemathesis.toml")
COMMAND = (sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG))


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("short")
    make_folder(folder, max_sequence_length=48)
    with load_pipeline(folder) as pipeline:
        pipeline.start_engine(max_running=10, max_waiting=20)
        with serving(pipeline) as server:
            yield server


def test_every_operation_keeps_its_promises(short: Server, tmp_path: Path) -> None:
    """Examples, boundary values, random bodies and sequences, from a fixed seed."""
    result = subprocess.run(
        [*COMMAND, "run", f"{short.url}/openapi.json", "--seed", "1", "--no-color"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=240,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-2000:]
    assert "Tested: 8" in result.stdout
    found = re.search(r"(\d+) generated", result.stdout)
    assert found is not None
    assert int(found[1]) > 300
    eventually(short.is_idle)
