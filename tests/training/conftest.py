"""A tiny model and rows to train it on, made once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.folders import make_folder
from tests.training.data import write_rows


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    make_folder(folder, "safetensors", dtype=torch.float32)
    return folder


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.json")


@pytest.fixture(autouse=True)
def no_tensorboard_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run leaves this variable behind, which would send the next one's logs to the same folder."""
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "")
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR")
