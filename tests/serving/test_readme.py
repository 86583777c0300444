"""The curl lines of the README, as they stand but for the address."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.serving.servers import PATIENCE_S, Server, eventually

ROOT = Path(__file__).parents[2]
ADDRESS = "http://127.0.0.1:8000"
LINES = [line for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines() if line.startswith("curl ")]


def curl(line: str, server: Server) -> str:
    """What curl prints."""
    if shutil.which("curl") is None:
        pytest.skip("There is no curl here.")
    command = shlex.split(line.replace(ADDRESS, str(server.client.base_url).rstrip("/")))
    result = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=PATIENCE_S, check=True)
    return result.stdout


def test_lines_for_api(server: Server) -> None:
    whole, stream, openai = LINES[:3]
    assert "你好" in json.loads(curl(whole, server))["response"]
    events = curl(stream, server)
    assert events.startswith("event: delta")
    assert "你好" in json.loads(events.split("event: done\ndata: ")[1])["response"]
    assert "你好" in json.loads(curl(openai, server))["choices"][0]["message"]["content"]


def test_lines_for_stream_api(poll: Server) -> None:
    ask, fetch = LINES[3:]
    assert json.loads(curl(ask, poll))["code"] == 0
    record = eventually(lambda: (found := json.loads(curl(fetch, poll))["response"])["is_finished"] and found)
    assert "你好" in record["response"]
