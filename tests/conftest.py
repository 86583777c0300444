"""Every test draws the same random numbers in every run, on one thread: the workers share the processors."""

from __future__ import annotations

import gc
import os
import re

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before the first import of torch; child processes inherit it

from pathlib import Path

import pytest

from tests import forking

TESTS = Path(__file__).parent
# These come first, since the last tests of a run should be short ones.
SLOW = (
    "ui",
    "serving",
    "ptuning",
    "training",
    "journeys",
    "test_docs.py",
    "kernels",
    "loading",
    "conversion",
    "engine",
)


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    import torch  # not in the process that only hands out the tests

    torch.manual_seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One worker runs all tests that share a fixture of a module or a package: a server, say, or a trained model."""
    places = {item: item.path.relative_to(TESTS).parts[0] for item in items}
    items.sort(key=lambda item: SLOW.index(places[item]) if places[item] in SLOW else len(SLOW))
    for item in items:
        fixtures = item._fixtureinfo.name2fixturedefs.values() if isinstance(item, pytest.Function) else ()
        scopes = {fixture.scope for overridden in fixtures for fixture in overridden}
        if item.get_closest_marker("xdist_group") is None and scopes & {"module", "package"}:
            shared = item.path.parent if "package" in scopes else item.path
            item.add_marker(pytest.mark.xdist_group(str(shared.relative_to(TESTS))))


def pytest_collection_finish() -> None:
    """What was imported stays: without it the collections that libraries ask for take a tenth of a second each."""
    gc.freeze()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    _name_without_groups(session.config)
    gc.collect()  # what it finds is reported; pytest would look five times more
    gc.freeze()
    forking.close()


def _name_without_groups(config: pytest.Config) -> None:
    """xdist appends the group to the name of a test; --last-failed, run without xdist, would not find it."""
    cache = getattr(config, "cache", None)
    if cache is not None and not hasattr(config, "workerinput"):
        failed = cache.get("cache/lastfailed", {})
        cache.set("cache/lastfailed", {re.sub(r"@[^@\]]+$", "", name): True for name in failed})
