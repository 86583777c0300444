"""Schemathesis against the OpenAPI schema: what it calls valid is answered, what it does not is refused, nothing breaks.

The model has a context of 48 tokens, so that every answer is short.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import schemathesis
from schemathesis.specs.openapi.checks import positive_data_acceptance

from chatglm.pipeline import load_pipeline
from tests.folders import make_folder
from tests.serving.servers import Server, eventually, serving

EXAMPLES = 25
# Valid by its schema, and still not to be had: a prompt that is too long, a conversation that does not end with the
# user, more answers than there are places.
REFUSED_WITH = 400


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("short")
    make_folder(folder, max_sequence_length=48)
    with load_pipeline(folder) as pipeline:
        pipeline.start_engine(max_running=10, max_waiting=20)
        with serving(pipeline) as server:
            yield server
            eventually(server.is_idle)


@pytest.fixture(scope="module")
def api_schema(short: Server) -> schemathesis.Schema:
    return schemathesis.openapi.from_url(f"{short.url}/openapi.json")


schema = schemathesis.pytest.from_fixture("api_schema")


@schema.parametrize()
@hypothesis.settings(max_examples=EXAMPLES, deadline=None)
def test_schema(case: schemathesis.Case) -> None:
    response = case.call()
    case.validate_response(response, excluded_checks=[positive_data_acceptance])
