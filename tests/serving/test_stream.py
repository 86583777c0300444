"""`POST /stream`: events, the last of them, heartbeats, parameters, errors in the middle."""

from __future__ import annotations

from typing import Any

import pytest

from tests.serving.events import Event, read_events
from tests.serving.servers import Server, break_after, eventually


def stream(server: Server, **body: Any) -> list[Event | str]:
    with server.client.stream("POST", "/stream", json=body) as reply:
        assert reply.status_code == 200, reply.read()
        assert reply.headers["content-type"].startswith("text/event-stream")
        assert reply.headers["cache-control"] == "no-store"
        return list(read_events(reply.iter_lines()))


def test_deltas_then_a_summary(server: Server) -> None:
    history = [["我叫小明", "你好，小明！"]]
    events = [e for e in stream(server, prompt="我叫什么名字", history=history, temperature=0) if isinstance(e, Event)]
    *deltas, done = events
    assert {event.name for event in deltas} == {"delta"}
    assert len(deltas) > 2
    assert done.name == "done"
    summary = done.json()
    assert summary["response"] == "".join(event.json()["delta"] for event in deltas)
    assert summary["history"] == [*history, ["我叫什么名字", summary["response"]]]
    assert summary["finish_reason"] == "stop"
    assert summary["dropped_rounds"] == 0
    usage = summary["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert server.post("/", json={"prompt": "我叫什么名字", "history": history}).json()["response"]


def test_the_same_answer_as_the_pipeline(server: Server) -> None:
    done = stream(server, prompt="hello", temperature=0)[-1]
    assert isinstance(done, Event)
    assert done.json()["response"] == server.service.pipeline.chat("hello", temperature=0)[0]


def test_parameters_reach_the_model(endless: Server) -> None:
    def response(**parameters: Any) -> dict[str, Any]:
        done = stream(endless, prompt="hello", **parameters)[-1]
        assert isinstance(done, Event)
        return dict(done.json())

    limited = response(max_new_tokens=7, seed=1, temperature=1)
    assert limited["finish_reason"] == "length"
    assert limited["usage"]["completion_tokens"] == 7
    assert response(max_new_tokens=7, seed=1, temperature=1) == limited
    assert response(max_new_tokens=30, seed=1, temperature=0) == response(max_new_tokens=30, seed=2, temperature=0)
    text = limited["response"]
    stopped = response(max_new_tokens=7, seed=1, temperature=1, stop=text[2:4])
    assert stopped["response"] == text[: text.index(text[2:4])]
    assert stopped["finish_reason"] == "stop"
    plain = response(max_new_tokens=1)["usage"]["prompt_tokens"]
    assert response(max_new_tokens=1, system="be kind")["usage"]["prompt_tokens"] > plain


def test_rounds_that_do_not_fit_are_reported(endless: Server) -> None:
    history = [["hello", "fox " * 200]] * 12
    done = stream(endless, prompt="hello", history=history, max_new_tokens=1)[-1]
    assert isinstance(done, Event)
    assert done.json()["dropped_rounds"] > 0
    assert len(done.json()["history"]) == 13


def test_heartbeats_while_the_request_waits(endless: Server) -> None:
    """Ten running answers leave none for the eleventh; its stream is alive all the same."""
    clients = [endless.client.stream("POST", "/stream", json={"prompt": f"hello {i}"}) for i in range(10)]
    replies = [client.__enter__() for client in clients]
    eventually(lambda: endless.service.stats().running == 10)
    with endless.client.stream("POST", "/stream", json={"prompt": "hello"}) as reply:
        assert next(read_events(reply.iter_lines())) == "heartbeat"
    for client in clients:
        client.__exit__(None, None, None)
    assert len(replies) == 10
    eventually(endless.is_idle)


def test_an_error_in_the_middle_is_the_last_event(endless: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    break_after(monkeypatch, 5)
    events = stream(endless, prompt="hello", max_new_tokens=50)
    last = events[-1]
    assert isinstance(last, Event)
    assert last == ("error", '{"detail":"The model produced NaN or infinite logits."}')
    assert any(isinstance(event, Event) and event.name == "delta" for event in events)
    monkeypatch.undo()
    eventually(endless.is_idle)
    assert stream(endless, prompt="hello", max_new_tokens=3)[-1][0] == "done"
