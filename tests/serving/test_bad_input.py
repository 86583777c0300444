"""The table of docs/api.md, cell by cell: its rows are the rows of this test."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from chatglm.pipeline import Pipeline
from tests.serving.servers import Server, eventually, polling, serving

KEY = "sesame"
HUGE = "1e999"  # JSON that no float holds; Python would write Infinity
ENDPOINTS = ("POST /", "POST /stream", "/v1/chat/completions", "polling /chat")
PATHS = dict(zip(ENDPOINTS, ("/", "/stream", "/v1/chat/completions", "/chat"), strict=True))


def read_table() -> dict[tuple[str, str], int]:
    """{(row, endpoint): status} of docs/api.md."""
    document = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")
    lines = document.split("## Error responses")[1].split("## ")[0].splitlines()
    rows = [[cell.strip().replace("`", "") for cell in line.strip("|").split("|")] for line in lines if "|" in line]
    header, _, *body = rows
    assert tuple(header[1:]) == ENDPOINTS
    return {
        (row[0], endpoint): int(status) for row in body for endpoint, status in zip(ENDPOINTS, row[1:], strict=True)
    }


TABLE = read_table()


class Sent(NamedTuple):
    """A request that differs from a good one in one thing."""

    content: bytes | None = None
    change: dict[str, Any] = {}
    remove: tuple[str, ...] = ()
    prompt: Any = "hello"
    history: Any = ()
    method: str = "POST"
    path: str | None = None
    headers: dict[str, str] = {}

    def bytes_for(self, endpoint: str, request_id: str) -> bytes:
        """The body."""
        if self.content is not None:
            return self.content
        return json.dumps(self._body(endpoint, request_id)).replace(f'"{HUGE}"', HUGE).encode()

    def _body(self, endpoint: str, request_id: str) -> dict[str, Any]:
        """The good request of a endpoint, with the change."""
        if endpoint == "/v1/chat/completions":
            past = [{"role": "user", "content": part} for pair in self.history for part in pair]
            good = {"messages": [*past, {"role": "user", "content": self.prompt}], "max_tokens": 2}
        elif endpoint == "polling /chat":
            good = {"request_id": request_id, "query": self.prompt, "history": self.history}
        else:
            good = {"prompt": self.prompt, "history": self.history}
        kept = {name: value for name, value in good.items() if name not in self.remove}
        return {**kept, **self.change}


SENT = {
    "malformed JSON": Sent(content=b'{"prompt": "hello"'),
    "empty body": Sent(content=b""),
    "JSON that is no object": Sent(content=b'["hello"]'),
    "nested 100,000 deep": Sent(content=b"[" * 100_000),
    "NaN": Sent(change={"temperature": float("nan")}),
    "a number too large for a float": Sent(change={"temperature": HUGE}),
    "invalid UTF-8": Sent(content='{"prompt": "你好"}'.encode("gbk")),
    "half a surrogate pair": Sent(prompt="\ud83d"),
    "no prompt": Sent(remove=("prompt", "messages", "query")),
    "empty prompt": Sent(prompt=""),
    "prompt longer than the context": Sent(prompt="fox " * 3000),
    "prompt of a million characters": Sent(prompt="fox!" * 250_000),
    "body of 11 MB": Sent(content=b" " * 11 * 1024**2),
    "prompt is a number": Sent(prompt=1),
    "history is not pairs": Sent(history=[["a"]]),
    "history holds a number": Sent(history=[["a", 1]]),
    "temperature below 0": Sent(change={"temperature": -1}),
    "top_p above 1": Sent(change={"top_p": 1.5}),
    "max_length is a string": Sent(change={"max_length": "long"}),
    "max_length below 0": Sent(change={"max_length": -5}),
    "unknown field": Sent(change={"temprature": 1}),
    "wrong method": Sent(method="PUT"),
    "unknown path": Sent(path="/nowhere"),
    "content type text/xml": Sent(headers={"content-type": "text/xml"}),
    "wrong API key": Sent(headers={"authorization": "Bearer guess"}),
    "no API key": Sent(headers={"authorization": ""}),
}


@pytest.fixture(scope="module")
def endpoints(endless_pipeline: Pipeline) -> Iterator[dict[str, Server]]:
    """Both servers, with a key."""
    defaults = {"max_length": 60}
    with (
        serving(endless_pipeline, api_key=KEY, defaults=defaults) as api,
        polling(endless_pipeline, api_key=KEY, defaults=defaults) as poll,
    ):
        yield {endpoint: poll if endpoint == "polling /chat" else api for endpoint in ENDPOINTS}


def test_the_document_and_the_tests_have_the_same_rows() -> None:
    assert list(dict.fromkeys(row for row, _ in TABLE)) == list(SENT)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("row", SENT)
def test_cell(endpoints: dict[str, Server], row: str, endpoint: str) -> None:
    sent = SENT[row]
    if row == "history is not pairs" and endpoint == "/v1/chat/completions":
        sent = Sent(change={"messages": [["user", "hello"]]})
    path = PATHS[endpoint] if sent.path is None else ("/v1" if "/v1" in endpoint else "") + sent.path
    headers = {"content-type": "application/json", "authorization": f"Bearer {KEY}", **sent.headers}
    reply = endpoints[endpoint].client.request(
        sent.method, path, content=sent.bytes_for(endpoint, row), headers=headers
    )
    assert reply.status_code == TABLE[row, endpoint], reply.text[:500]
    if reply.status_code >= 400:
        require_one_sentence(reply, endpoint)
    if endpoint == "polling /chat":  # the id stays free
        workers = endpoints[endpoint].workers
        assert workers is not None
        if reply.status_code == 200:
            eventually(lambda: not workers.records.num_unfinished)
        else:
            assert workers.records.read(row) is None


def require_one_sentence(reply: httpx.Response, endpoint: str) -> None:
    """In the form of the endpoint, without a traceback."""
    body = reply.json()
    if endpoint == "/v1/chat/completions":
        assert set(body) == {"error"}
        assert set(body["error"]) == {"message", "type", "param", "code"}
        message = body["error"]["message"]
    elif endpoint == "polling /chat":
        assert set(body) == {"code", "msg"}
        assert body["code"] == reply.status_code
        message = body["msg"]
    else:
        assert set(body) == {"detail"}
        message = body["detail"]
    assert message.endswith(".")
    assert "\n" not in message
    assert len(message) < 300
    assert "Error" not in message
    assert "Traceback" not in reply.text
