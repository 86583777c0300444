"""The load script: a small mix in every run, the long one with `-m slow`."""

from __future__ import annotations

import asyncio

import pytest

from benchmarks.load import run, server_process
from tests.serving.servers import Server

GROWTH_MB = 60


def test_a_small_mix(server: Server) -> None:
    report = asyncio.run(run(server.url, num_requests=20, num_clients=8))
    assert report["wrong"] == []
    assert report["statuses"]["malformed"] == 2
    assert report["statuses"]["200"] + report["statuses"]["left"] == 18
    assert report["still_running"] == report["blocks_not_free"] == 0


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_two_thousand_requests_leave_nothing_behind() -> None:
    with server_process([]) as (url, _):
        report = asyncio.run(run(url, num_requests=2000, num_clients=25))
    assert report["wrong"] == []
    assert report["statuses"]["malformed"] == 200
    assert report["still_running"] == report["blocks_not_free"] == 0
    after_warm_up, at_the_end = report["memory_mb"]
    assert at_the_end - after_warm_up < GROWTH_MB
