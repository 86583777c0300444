"""Authentication, origins, the body limit, offline documentation, metrics."""

from __future__ import annotations

import re

import httpx
import pytest

from chatglm.pipeline import Pipeline
from tests.serving.servers import Server, eventually, serving

PAGE = "http://localhost:3000"


def test_the_key_protects_everything_but_health_and_documentation(demo: Pipeline) -> None:
    with serving(demo, api_key="sesame") as server:
        paths = server.get("/openapi.json").json()["paths"]
        assert server.get("/health").status_code == 200
        assert server.get("/docs").status_code == 200
        for path, methods in paths.items():
            for method in methods:
                if path == "/health":
                    continue
                for header in ({}, {"authorization": "Bearer sesam"}, {"authorization": "sesame"}):
                    reply = server.client.request(method, path, headers=header)
                    assert reply.status_code == 401, path
                    assert reply.headers["www-authenticate"] == "Bearer"
        assert server.get("/metrics", headers={"authorization": "bearer sesame"}).status_code == 200
        assert server.get("/metrics", headers={"authorization": "Bearer ключ".encode()}).status_code == 401


def test_origins(demo: Pipeline) -> None:
    asking = {
        "origin": PAGE,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization",
    }
    with serving(demo, cors=(PAGE,), api_key="sesame") as server:
        preflight = server.client.options("/v1/chat/completions", headers=asking)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == PAGE
        assert "authorization" in preflight.headers["access-control-allow-headers"].lower()
        refused = server.post("/", json={"prompt": "hello"}, headers={"origin": PAGE})
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == PAGE
        other = server.get("/health", headers={"origin": "http://evil.example"})
        assert "access-control-allow-origin" not in other.headers
    with serving(demo, cors=("*",)) as server:
        assert server.get("/health", headers={"origin": PAGE}).headers["access-control-allow-origin"] == "*"


def test_without_the_flag_no_page_may_call(server: Server) -> None:
    assert "access-control-allow-origin" not in server.get("/health", headers={"origin": PAGE}).headers


@pytest.mark.parametrize("page", ["/docs", "/redoc"])
def test_the_documentation_needs_no_network(server: Server, page: str) -> None:
    """Everything the page names is served here."""
    html = server.get(page).text
    needed = re.findall(r"""(?:src|href)=["']([^"']+)""", html) + re.findall(r"url: '([^']+)'", html)
    assert len(needed) >= 2
    for address in needed:
        assert address.startswith("/"), address
        assert server.get(address).status_code == 200
    assert "http" not in html.replace("http://www.w3.org", "")


def test_health_and_metrics(server: Server) -> None:
    server.post("/", json={"prompt": "你好"})
    server.post("/", json={"prompt": 1})
    eventually(server.is_idle)
    assert server.get("/health").json() == {"status": "ok", "model": "demo", "running": 0, "waiting": 0}
    text = server.get("/metrics").text
    figures = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(figures['chatglm_http_requests_total{path="/",status="200"}']) >= 1
    assert float(figures['chatglm_http_requests_total{path="/",status="422"}']) >= 1
    assert float(figures['chatglm_answers_total{finish_reason="stop"}']) >= 1
    assert float(figures["chatglm_time_to_first_token_seconds_count"]) >= 1
    assert float(figures["chatglm_completion_tokens_total"]) >= 5
    assert figures["chatglm_running"] == "0.0"
    assert figures["chatglm_cache_blocks_free"] == figures["chatglm_cache_blocks"] != "0.0"
    assert "process_resident_memory_bytes" in figures


def test_made_up_paths_do_not_fill_the_metrics(server: Server) -> None:
    for number in range(5):
        server.get(f"/made-up-{number}")
    text = server.get("/metrics").text
    assert "made-up" not in text
    assert 'path="other",status="404"' in text


def test_a_body_in_chunks_is_limited_too(server: Server) -> None:
    """No length is announced."""
    chunks = (b" " * 1024**2 for _ in range(12))
    assert server.post("/", content=chunks, headers={"content-type": "application/json"}).status_code == 413
    fine = (part for part in (b'{"prompt":', b'"hello", "max_length": 8}'))
    assert server.post("/", content=fine, headers={"content-type": "application/json"}).status_code == 200


def test_two_servers_do_not_share_their_figures(demo: Pipeline) -> None:
    with serving(demo) as one, serving(demo) as other:
        one.get("/health")
        assert 'path="/health"' not in other.get("/metrics").text
        with httpx.Client() as client:
            assert 'path="/health"' in client.get(one.url + "/metrics").text
