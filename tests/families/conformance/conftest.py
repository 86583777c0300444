"""A tiny model of each family: as a folder, and loaded as users load it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

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


def _params() -> list[Any]:
    return [pytest.param(case, id=case.name, marks=[pytest.mark.slow] if case.is_slow else []) for case in CASES]


@pytest.fixture(params=_params(), scope="package")
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
