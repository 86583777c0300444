"""A tiny model of each family: as a folder, and loaded as users load it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from chatglm import kernels
from chatglm.pipeline import Pipeline, load_pipeline
from tests.families import cases
from tests.families.cases import CASES, FamilyCase


@pytest.fixture(autouse=True, scope="package")
def _registered() -> Iterator[None]:
    cases.register()
    with kernels.use("reference"):
        yield
    cases.unregister()


@pytest.fixture(params=CASES, ids=lambda case: case.name, scope="package")
def case(request: pytest.FixtureRequest, _registered: None) -> FamilyCase:
    return request.param


@pytest.fixture(scope="package")
def folder(case: FamilyCase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(case.name) / "model"
    case.make_folder(folder)
    return folder


@pytest.fixture(scope="package")
def pipe(folder: Path) -> Iterator[Pipeline]:
    with load_pipeline(folder, device="cpu", dtype="fp32") as pipe:
        yield pipe
