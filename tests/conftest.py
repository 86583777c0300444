"""Every test draws the same random numbers in every run, on one thread: the workers share the processors."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before the first import of torch; child processes inherit it

from pathlib import Path

import pytest
import torch

from tests import forking

TESTS = Path(__file__).parent
# In this order, since the last tests of a run should be short ones. True: one worker runs them all, because their
# servers, browsers or compiled programs are slow to start.
SLOW_FIRST = {
    "ui": False,
    "serving": True,
    "ptuning": False,
    "training": False,
    "journeys": True,
    "test_docs.py": False,
    "loading": False,
    "conversion": False,
    "engine": False,
}


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    torch.manual_seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = list(SLOW_FIRST)
    places = {item: item.path.relative_to(TESTS).parts[0] for item in items}
    items.sort(key=lambda item: order.index(places[item]) if places[item] in order else len(order))
    for item in items:
        if SLOW_FIRST.get(places[item]):
            item.add_marker(pytest.mark.xdist_group(places[item]))


def pytest_sessionfinish() -> None:
    forking.close()
