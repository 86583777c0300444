"""The polling API as upstream answers it. The ids are those of the list of its behaviour."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from chatglm.pipeline import Pipeline
from tests.serving.servers import BROKEN, Server, break_after, eventually, polling

BUSY = {"code": 100, "msg": "busy now"}
EXISTS = {"code": 101, "msg": "request_id already exists"}
UNKNOWN = {"code": 102, "msg": "request_id not exists"}
STARTED = {"code": 0, "msg": "start process"}


@pytest.fixture
def free(endless_poll: Server) -> Iterator[Server]:
    """A server without running requests, before and after."""
    yield endless_poll
    assert endless_poll.workers is not None
    for request_id in list(endless_poll.workers._tasks):
        endless_poll.workers.cancel(request_id)
    eventually(lambda: not endless_poll.workers.records.num_unfinished)  # type: ignore[union-attr]
    eventually(endless_poll.is_idle)


def new_id() -> str:
    return uuid.uuid4().hex


def ask(server: Server, request_id: str, **more: Any) -> dict[str, Any]:
    reply = server.post("/chat", json={"request_id": request_id, "query": "hello", "history": [], **more})
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


def read(server: Server, request_id: str) -> dict[str, Any]:
    reply = server.post("/get_response", json={"request_id": request_id})
    assert reply.status_code == 200
    assert {name: reply.json()[name] for name in ("code", "msg")} == {"code": 0, "msg": "success"}
    return dict(reply.json()["response"])


def read_finished(server: Server, request_id: str) -> dict[str, Any]:
    return dict(eventually(lambda: (record := read(server, request_id))["is_finished"] and record))


def test_STR_03_and_07_an_answer_read_again_and_again(poll: Server) -> None:
    before, request_id = time.time(), new_id()
    assert ask(poll, request_id, query="我叫什么名字", history=[["我叫小明", "你好，小明！"]]) == STARTED
    record = read_finished(poll, request_id)
    assert set(record) == {"is_finished", "is_handled", "response", "timestamp"}
    assert record["is_handled"]
    assert "小明" in record["response"]
    assert before <= record["timestamp"] <= time.time()
    assert read(poll, request_id) == record
    assert ask(poll, request_id) == EXISTS


def test_STR_02_the_response_grows(free: Server) -> None:
    request_id = new_id()
    assert ask(free, request_id) == STARTED
    first = eventually(lambda: read(free, request_id)["response"])
    longer = eventually(lambda: len(text := read(free, request_id)["response"]) > len(first) and text)
    assert longer.startswith(first)


def test_an_unknown_id(poll: Server) -> None:
    for path in ("/get_response", "/cancel"):
        reply = poll.post(path, json={"request_id": "never"})
        assert (reply.status_code, reply.json()) == (200, UNKNOWN)


def test_STR_01_05_06_ten_run_twenty_wait_the_next_is_busy(free: Server) -> None:
    ids = [new_id() for _ in range(30)]
    assert [ask(free, request_id) for request_id in ids] == [STARTED] * 30
    assert ask(free, new_id()) == BUSY
    assert ask(free, ids[0]) == BUSY  # the limit is checked before the id
    eventually(lambda: sum(read(free, request_id)["is_handled"] for request_id in ids) == 10)
    waiting = read(free, ids[-1])
    assert waiting["response"] == ""
    assert not waiting["is_handled"]
    assert not waiting["is_finished"]
    free.post("/cancel", json={"request_id": ids[-1]})  # the last in the queue: its slot is free at once
    assert read(free, ids[-1])["is_finished"]
    eventually(lambda: ask(free, new_id()) == STARTED)


def test_cancel_keeps_the_text_and_frees_the_slot(free: Server) -> None:
    request_id = new_id()
    ask(free, request_id)
    eventually(lambda: read(free, request_id)["response"])
    assert free.post("/cancel", json={"request_id": request_id}).json() == {"code": 0, "msg": "success"}
    record = read_finished(free, request_id)
    assert record["error"] == "The answer was cancelled before it was complete."
    assert record["response"]
    assert free.post("/cancel", json={"request_id": request_id}).json()["code"] == 0
    assert read(free, request_id) == record
    eventually(free.is_idle)


def test_STR_10_a_failure_finishes_the_record(free: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """More failures than there are slots, and the server still answers."""
    with monkeypatch.context() as patch:
        break_after(patch, 0)
        for _ in range(31):
            request_id = new_id()
            assert ask(free, request_id, max_new_tokens=2) == STARTED
            record = read_finished(free, request_id)
            assert record["error"] == BROKEN
    request_id = new_id()
    ask(free, request_id, max_new_tokens=2)
    assert "error" not in read_finished(free, request_id)


def test_STR_08_parameters(free: Server) -> None:
    responses = []
    for seed in (1, 1, 2):
        request_id = new_id()
        ask(free, request_id, max_new_tokens=20, temperature=1, top_p=1, top_k=0, seed=seed)
        responses.append(read_finished(free, request_id)["response"])
    assert responses[0] == responses[1] != responses[2]


def test_records_are_bounded_in_number_and_time(demo: Pipeline) -> None:
    with polling(demo, max_records=3, record_ttl=3600.0) as server:
        ids = [new_id() for _ in range(5)]
        for request_id in ids:
            ask(server, request_id, max_new_tokens=1)
            read_finished(server, request_id)
        codes = [server.post("/get_response", json={"request_id": request_id}).json()["code"] for request_id in ids]
        assert codes == [102, 102, 0, 0, 0]
    with polling(demo, record_ttl=0.0) as server:
        request_id = new_id()
        ask(server, request_id, max_new_tokens=1)
        eventually(lambda: server.post("/get_response", json={"request_id": request_id}).json() == UNKNOWN)
        assert ask(server, request_id, max_new_tokens=1) == STARTED


@pytest.mark.parametrize("request_id", ["", None, 7, "x" * 257])
def test_STR_12_ids_are_strings(poll: Server, request_id: object) -> None:
    for path in ("/chat", "/get_response", "/cancel"):
        reply = poll.post(path, json={"request_id": request_id, "query": "hello"})
        assert reply.status_code == 422
        assert reply.json()["msg"].startswith("request_id must")


def test_health_key_and_origins(demo: Pipeline) -> None:
    page = "http://localhost:3000"
    with polling(demo, api_key="sesame", cors=(page,)) as server:
        assert server.get("/health").json()["status"] == "ok"
        assert server.get("/metrics").status_code == 401
        assert "chatglm_running 0.0" in server.get("/metrics", headers={"Authorization": "Bearer sesame"}).text
        body = {"request_id": "x"}
        refused = server.post("/get_response", json=body, headers={"Origin": page})
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"] == "Bearer"
        assert refused.headers["access-control-allow-origin"] == page
        allowed = server.post("/get_response", json=body, headers={"Authorization": "Bearer sesame"})
        assert allowed.json() == UNKNOWN
        assert "access-control-allow-origin" not in allowed.headers
        asking = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "Authorization"}
        preflight = server.client.options("/chat", headers={"Origin": page, **asking})
        assert preflight.status_code == 200
        assert "authorization" in preflight.headers["access-control-allow-headers"].lower()
        other = server.client.options("/chat", headers={"Origin": "http://evil.example"})
        assert "access-control-allow-origin" not in other.headers
