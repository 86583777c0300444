"""What the tests of loading share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.folders import make_folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the licence flag out of the tester's home, and the kernels' library in one place for all tests."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("CHATGLM_CACHE", str(folder))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole model, in shards of the old format."""
    make_folder(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny products gain nothing by more, and lose a lot where other programs want the same cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
