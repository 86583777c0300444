"""What the tests of checkpoints share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.folders import (
    make_folder,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A healthy folder, in the layout of the published one."""
    make_folder(tmp_path / "model")
    return tmp_path / "model"
