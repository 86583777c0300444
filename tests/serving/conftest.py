"""Servers that all tests share: on the demo model for its answers, on a random one for answers that never end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from chatglm.pipeline import Pipeline, load_pipeline
from tests.serving.servers import Server, polling, serving
from tests.tiny import make_tiny_checkpoint


@pytest.fixture(scope="package")
def demo() -> Iterator[Pipeline]:
    """It gives sensible answers."""
    with load_pipeline("demo") as pipeline:
        pipeline.start_engine(max_running=10, max_waiting=20)
        yield pipeline


@pytest.fixture(scope="package")
def endless_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    """It answers up to the limit: no token of its vocabulary ends an answer."""
    with load_pipeline(make_tiny_checkpoint(tmp_path_factory.mktemp("endless_pipeline"))) as pipeline:
        pipeline.model.spec = replace(pipeline.model.spec, eos_ids=(-1,))
        pipeline.start_engine(max_running=10, max_waiting=20)
        yield pipeline


@pytest.fixture(scope="package")
def server(demo: Pipeline) -> Iterator[Server]:
    with serving(demo) as running:
        yield running


@pytest.fixture(scope="package")
def endless(endless_pipeline: Pipeline) -> Iterator[Server]:
    with serving(endless_pipeline, heartbeat=0.2) as running:
        yield running


@pytest.fixture(scope="package")
def poll(demo: Pipeline) -> Iterator[Server]:
    with polling(demo) as running:
        yield running


@pytest.fixture(scope="package")
def endless_poll(endless_pipeline: Pipeline) -> Iterator[Server]:
    with polling(endless_pipeline) as running:
        yield running
