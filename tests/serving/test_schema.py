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


PHASES = [
    pytest.param("examples,fuzzing,stateful", 40, id="random"),
    pytest.param("coverage", 300, id="boundaries", marks=pytest.mark.slow),
]


@pytest.mark.slow
@pytest.mark.parametrize(("phases", "min_cases"), PHASES)
def test_every_operation_matches_its_schema(short: Server, phases: str, min_cases: int, tmp_path: Path) -> None:
    """With a fixed seed."""
    result = subprocess.run(
        [*COMMAND, "run", f"{short.url}/openapi.json", "--phases", phases, "--seed", "1", "--no-color"],
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
    assert int(found[1]) > min_cases
    eventually(short.is_idle)
