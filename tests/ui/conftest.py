"""The tiny model that tests of the interfaces share, and a clean environment for the programs they start."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tiny import make_tiny_checkpoint


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny-model")


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """For subprocesses: no settings of whoever runs the tests, and a licence notice that comes but once."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("CHATGLM_", "PYTHON"))}
    cache = tmp_path_factory.mktemp("cache")
    (cache / "weights-licence-shown").touch()
    return {**ours, "CHATGLM_CACHE": str(cache), "TERM": "xterm-256color", "LC_ALL": "C.UTF-8", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def _clean_module_environment(environment: dict[str, str]) -> Iterator[None]:
    """The same for programs that run in this process."""
    with pytest.MonkeyPatch.context() as patch:
        for name in os.environ:
            if name.startswith("CHATGLM_"):
                patch.delenv(name)
        patch.setenv("CHATGLM_CACHE", environment["CHATGLM_CACHE"])
        yield
