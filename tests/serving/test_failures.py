"""Clients that disconnect, do not read or exceed the limits, internal errors, shutdown."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from chatglm.pipeline import Pipeline
from chatglm.serving.prometheus import ServerMetrics
from tests.serving.servers import BROKEN, MUCH, PATIENCE_S, Server, break_after, eventually, open_socket, serving

STREAMED = {
    "/stream": {"prompt": "hello"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hello"}], "stream": True},
}
WHOLE = {
    "/": {"prompt": "hello"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hello"}], "n": 3},
    "/v1/completions": {"prompt": "hello", "max_tokens": 2000},
}


def ended(server: Server) -> tuple[int, int]:
    """(answers that ended by themselves, tokens of all answers) since the engine began."""
    stats = server.service.stats()
    return stats.finished, stats.tokens_total


@pytest.mark.parametrize("path", STREAMED)
def test_leaving_a_stream_cancels_it(endless: Server, path: str) -> None:
    finished, _ = ended(endless)
    with endless.client.stream("POST", path, json=STREAMED[path]) as reply:
        assert reply.status_code == 200
        next(reply.iter_lines())
        eventually(lambda: endless.service.stats().running == 1)
    eventually(endless.is_idle)
    assert ended(endless)[0] == finished


@pytest.mark.parametrize("path", WHOLE)
def test_leaving_a_whole_answer_cancels_it(endless: Server, path: str) -> None:
    finished, _ = ended(endless)
    with open_socket(endless.url, path, WHOLE[path]):
        eventually(lambda: endless.service.stats().running)
    eventually(endless.is_idle)
    assert ended(endless)[0] == finished


def test_leaving_while_waiting_frees_the_slot(endless: Server) -> None:
    sockets = [open_socket(endless.url, "/stream", {"prompt": f"hello {i}"}) for i in range(14)]
    eventually(lambda: endless.service.stats().waiting == 4)
    for waiting in sockets[10:]:
        waiting.close()
    eventually(lambda: endless.service.stats().waiting == 0)
    for running in sockets[:10]:
        running.close()
    eventually(endless.is_idle)


def test_a_cancelled_stream_makes_no_more_tokens(endless: Server) -> None:
    """Counted after the engine has seen the cancellation."""
    with open_socket(endless.url, "/stream", {"prompt": "hello"}) as client:
        client.recv(2000)
    eventually(endless.is_idle)
    _, tokens = ended(endless)
    time.sleep(0.2)
    assert ended(endless)[1] == tokens


def test_a_client_that_does_not_read_blocks_no_other(endless: Server) -> None:
    """More chunks than fit into any buffer on the way: its answers are finished, and others are served meanwhile."""
    finished, _ = ended(endless)
    with open_socket(endless.url, "/v1/chat/completions", MUCH, reads=False):
        eventually(lambda: endless.service.stats().running == 8)
        reply = endless.post("/stream", json={"prompt": "hello", "max_new_tokens": 5})
        assert reply.text.count("event: done") == 1
        eventually(endless.is_idle)
        assert ended(endless)[0] == finished + 9


def test_a_hundred_requests_at_once(demo: Pipeline) -> None:
    """Thirty slots: the others get 429 at once, and each answer equals the one of a single request."""
    alone = demo.chat("你好", temperature=0, max_new_tokens=8)[0]
    body = {"prompt": "你好", "temperature": 0, "max_new_tokens": 8}
    with serving(demo) as server, httpx.Client(limits=httpx.Limits(max_connections=100), timeout=PATIENCE_S) as client:

        def ask(_: int) -> tuple[int, str]:
            reply = client.post(server.url + "/stream", json=body)
            return reply.status_code, reply.text

        with ThreadPoolExecutor(100) as pool:
            replies = list(pool.map(ask, range(100)))
        statuses = [status for status, _ in replies]
        assert set(statuses) <= {200, 429}
        assert statuses.count(200) >= 30
        for status, text in replies:
            if status == 200:
                done = text.split("event: done\ndata: ")[1]
                assert json.loads(done)["response"] == alone
            else:
                assert json.loads(text)["detail"].endswith("Try again in a moment.")
        eventually(server.is_idle)


def test_the_limit_of_running_and_waiting_requests(endless: Server) -> None:
    sockets = [open_socket(endless.url, "/stream", {"prompt": f"hello {i}"}) for i in range(30)]
    eventually(lambda: endless.service.stats().waiting == 20)
    for path, body in (*WHOLE.items(), *STREAMED.items()):
        reply = endless.post(path, json=body)
        assert reply.status_code == 429
        assert reply.headers["retry-after"] == "1"
    for each in sockets:
        each.close()
    eventually(endless.is_idle)


def test_the_time_to_try_again_follows_queue_and_answers() -> None:
    metrics = ServerMetrics(lambda: pytest.fail("not read"))
    assert metrics.seconds_until_room(30) == 1
    for _ in range(100):
        metrics.note_duration(59.9)
    assert [metrics.seconds_until_room(num) for num in (1, 6, 30, 1000)] == [60, 10, 2, 1]
    for _ in range(100):
        metrics.note_duration(1e6)
    assert metrics.seconds_until_room(1) == 600


def test_health_answers_while_answers_are_made(endless: Server) -> None:
    """Twenty of them during ten answers; how quickly is measured by benchmarks/load.py."""
    sockets = [open_socket(endless.url, "/stream", {"prompt": f"hello {i}"}) for i in range(10)]
    eventually(lambda: endless.service.stats().running == 10)
    _, before = ended(endless)
    replies = [endless.get("/health") for _ in range(20)]
    assert {reply.json()["running"] for reply in replies} == {10}
    eventually(lambda: ended(endless)[1] > before)
    for each in sockets:
        each.close()
    eventually(endless.is_idle)


def test_an_internal_error_is_one_sentence(endless: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its text stays in the log."""
    with monkeypatch.context() as patch:
        break_after(patch, 0, RuntimeError)
        replies = {path: endless.post(path, json=body) for path, body in WHOLE.items()}
        streams = {path: endless.post(path, json=body).text for path, body in STREAMED.items()}
    for path, reply in replies.items():
        assert reply.status_code == 500, path
        assert "its log says why" in reply.text
        assert BROKEN not in reply.text
    for text in streams.values():
        assert "its log says why" in text
        assert BROKEN not in text
    eventually(endless.is_idle)
    assert endless.post("/", json={"prompt": "hello", "max_length": 9}).status_code == 200


def test_shutdown_cancels_what_does_not_finish(endless_pipeline: Pipeline) -> None:
    """Clients are told, in the form of their endpoint."""
    with ThreadPoolExecutor(4) as pool:
        with serving(endless_pipeline, shutdown_timeout=0.3) as server:
            url = server.url
            whole = pool.submit(httpx.post, url + "/", json={"prompt": "hello"}, timeout=PATIENCE_S)
            chat = pool.submit(
                httpx.post, url + "/v1/chat/completions", json=WHOLE["/v1/chat/completions"], timeout=PATIENCE_S
            )
            events = pool.submit(httpx.post, url + "/stream", json={"prompt": "hello"}, timeout=PATIENCE_S)
            chunks = pool.submit(
                httpx.post, url + "/v1/chat/completions", json=STREAMED["/v1/chat/completions"], timeout=PATIENCE_S
            )
            eventually(lambda: server.service.stats().running == 6)
        message = "The answer was cancelled before it was complete."
        assert (whole.result().status_code, whole.result().json()["detail"]) == (503, message)
        assert (chat.result().status_code, chat.result().json()["error"]["message"]) == (503, message)
        assert '"finish_reason":"cancelled"' in events.result().text
        assert message in chunks.result().text
        assert server.is_idle()


def test_shutdown_lets_short_answers_finish(endless_pipeline: Pipeline) -> None:
    with ThreadPoolExecutor(1) as pool:
        with serving(endless_pipeline, shutdown_timeout=PATIENCE_S) as server:
            body = {"prompt": "hello", "max_new_tokens": 100}
            reply = pool.submit(httpx.post, server.url + "/stream", json=body, timeout=PATIENCE_S)
            eventually(lambda: server.service.stats().running == 1)
        assert '"finish_reason":"length"' in reply.result().text
