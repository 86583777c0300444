"""`POST /` as upstream's api.py answers it. The ids are those of the list of its behaviour."""

from __future__ import annotations

import json
import re

import pytest

from tests.serving.servers import Server

HELLO = {"prompt": "你好", "history": []}
LANGCHAIN = {"prompt": "你好", "temperature": 0.1, "history": [], "max_length": 20000, "top_p": 0.7}


def test_API_01_documented_sample(server: Server) -> None:
    reply = server.post("/", json=HELLO)
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "application/json"
    body = reply.json()
    assert list(body) == ["response", "history", "status", "time"]
    assert "你好" in body["response"]
    assert body["history"] == [["你好", body["response"]]]
    assert body["status"] == 200
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", body["time"])


def test_bytes_are_those_of_upstreams_json(server: Server) -> None:
    """No spaces, Chinese unescaped."""
    reply = server.post("/", json=HELLO)
    assert reply.content == json.dumps(reply.json(), ensure_ascii=False, separators=(",", ":")).encode()


def test_API_02_zero_and_null_mean_the_default(server: Server) -> None:
    plain = server.post("/", json=HELLO).json()["response"]
    for nothing in (0, 0.0, None):
        body = {**HELLO, "max_length": nothing, "top_p": nothing, "temperature": nothing}
        assert server.post("/", json=body).json()["response"] == plain


def test_API_03_langchains_payload_and_unknown_fields(server: Server) -> None:
    body = server.post("/", json={**LANGCHAIN, "whatever": {"x": 1}}).json()
    assert "你好" in body["response"]
    assert body["history"][-1] == ["你好", body["response"]]


def test_API_04_other_methods_and_paths(server: Server) -> None:
    assert server.get("/").status_code == 405
    assert server.get("/").headers["allow"] == "POST"
    assert server.post("/chat", json=HELLO).status_code == 404
    assert server.get("/docs").status_code == 200


def test_API_09_the_client_carries_the_history(server: Server) -> None:
    first = server.post("/", json={"prompt": "我叫小明", "history": None}).json()
    second = server.post("/", json={"prompt": "我叫什么名字", "history": first["history"]}).json()
    assert "小明" in second["response"]
    assert second["history"][0] == first["history"][0]
    assert len(second["history"]) == 2


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_a_forgotten_content_type_does_no_harm(server: Server, content_type: str | None) -> None:
    """`curl -d` and `requests.post(data=...)` send one of these; upstream reads the body as JSON."""
    headers = {"content-type": content_type} if content_type else {}
    reply = server.post("/", content=json.dumps(HELLO).encode(), headers=headers)
    assert reply.status_code == 200


def test_max_length_is_obeyed(server: Server) -> None:
    whole = server.post("/", json=HELLO).json()["response"]
    cut = server.post("/", json={**HELLO, "max_length": 8}).json()["response"]
    assert cut != whole
    assert whole.startswith(cut)


def test_rounds_without_a_question(server: Server) -> None:
    """Some clients send null for it."""
    told = [server.post("/", json={"prompt": "你好", "history": [[none, "我能帮你。"]]}) for none in (None, "")]
    assert [reply.status_code for reply in told] == [200, 200]
    assert told[0].json()["history"][0] == ["", "我能帮你。"]


def test_head_of_health(server: Server) -> None:
    reply = server.client.head("/health")
    assert (reply.status_code, reply.text) == (200, "")
