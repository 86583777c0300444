"""`python api.py`, `stream_api.py` and `web_demo.py` from start to end, and what their flags get."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx
import openai
import pytest

from chatglm.cli import console
from chatglm.serving.commands import serve, serve_polling
from tests.serving.servers import BEGINNINGS, MUCH, PATIENCE_S, ROOT, connect, eventually, open_socket, process
from tests.tiny import make_tiny_checkpoint
from tests.ui.gradio_servers import NEEDS_GRADIO

pytestmark = pytest.mark.xdist_group("programs")
Command = Callable[[Sequence[str]], int]
QUIET = {"CHATGLM_PORT": "0", "OMP_NUM_THREADS": "1"}
HELLO = {"prompt": "你好", "history": []}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


def test_api_from_start_to_ctrl_c() -> None:
    with process("api.py", environment={**QUIET, "CHATGLM_API_KEY": "sesame"}) as api:
        url = api.wait_until_listening()
        assert url.startswith("http://127.0.0.1:")
        assert "GLM" in api.stderr.text  # the banner of the demo model
        headers = {"authorization": "Bearer sesame"}
        body = httpx.post(url, json=HELLO, headers=headers, timeout=PATIENCE_S).json()
        assert "你好" in body["response"]
        line = f'[{body["time"]}] ", prompt:"你好", response:"{body["response"]!r}"'
        eventually(lambda: line in api.stdout.text)
        forged = httpx.post(url, json={"prompt": "a\n[x] b\x1b[2J"}, headers=headers, timeout=PATIENCE_S)
        assert forged.status_code == 200
        eventually(lambda: r'prompt:"a\n[x] b\x1b[2J"' in api.stdout.text)
        with openai.OpenAI(base_url=f"{url}/v1", api_key="sesame", max_retries=0) as client:
            made = client.chat.completions.create(model="demo", messages=[{"role": "user", "content": "你好"}])
            assert made.choices[0].message.content == body["response"]
        assert httpx.post(url, json=HELLO, timeout=PATIENCE_S).status_code == 401
        api.send(signal.SIGINT)
        assert api.wait() == 130
        assert "sesame" not in api.stdout.text + api.stderr.text
        assert "Traceback" not in api.stderr.text


def test_sigterm_ends_every_kind_of_connection(tiny: Path) -> None:
    """One stream is read, one is not, one connection sends nothing, others half of a request: none delays the exit."""
    flags = ["--model", str(tiny), "--shutdown-timeout", "0.5", "--no-log-requests"]
    with process("-m", "chatglm", "serve", *flags, environment=QUIET) as api:
        url = api.wait_until_listening()
        left = [connect(url, sent) for sent in BEGINNINGS.values()]
        stuck = open_socket(url, "/v1/chat/completions", MUCH, reads=False)
        with httpx.stream("POST", url + "/stream", json={"prompt": "hello", "seed": 1}, timeout=PATIENCE_S) as reply:
            lines = reply.iter_lines()
            next(lines)
            api.send(signal.SIGTERM)
            rest = list(lines)
        assert '"finish_reason":"' in rest[-2]
        assert api.wait() == 0
        for each in (stuck, *left):
            each.close()
        assert "Traceback" not in api.stderr.text


@pytest.mark.slow
@NEEDS_GRADIO
def test_web_demo_with_a_password_from_start_to_ctrl_c() -> None:
    with process("web_demo.py", "--port", "0", "--auth", "me:secret", environment=QUIET) as server:
        url = server.wait_until_listening()
        assert httpx.get(f"{url}/config", timeout=PATIENCE_S).status_code == 401
        with httpx.Client(base_url=url, timeout=PATIENCE_S) as client:
            assert client.post("/login", data={"username": "me", "password": "wrong"}).status_code == 400
            assert client.post("/login", data={"username": "me", "password": "secret"}).status_code == 200
            assert client.get("/config").status_code == 200
        server.send(signal.SIGINT)
        assert server.wait() == 130
        assert "secret" not in server.stdout.text + server.stderr.text
        assert "Traceback" not in server.stderr.text


def test_stream_api_from_start_to_end() -> None:
    with process("stream_api.py", "--shutdown-timeout", "20", environment=QUIET) as api:
        url = api.wait_until_listening()
        with httpx.Client(base_url=url, timeout=PATIENCE_S) as client:

            def read(request_id: str) -> dict[str, object]:
                return dict(client.post("/get_response", json={"request_id": request_id}).json()["response"])

            ask = {"request_id": "1", "query": "你好", "history": []}
            assert client.post("/chat", json=ask).json() == {"code": 0, "msg": "start process"}
            record = eventually(lambda: (found := read("1"))["is_finished"] and found)
            assert "你好" in record["response"]
            assert client.post("/chat", json=ask).json()["code"] == 101
            assert client.post("/chat", json={**ask, "request_id": "2"}).json()["code"] == 0
            left = [connect(url, sent) for sent in BEGINNINGS.values()]
            api.send(signal.SIGTERM)
            # What was accepted can still be read; nothing more is taken.
            assert eventually(lambda: client.post("/chat", json={**ask, "request_id": "3"}).status_code == 503)
            assert eventually(lambda: (found := read("2"))["is_finished"] and found)["response"] == record["response"]
        assert api.wait() == 0
        assert "Traceback" not in api.stderr.text
        for each in left:
            each.close()


def test_ctrl_c_again_and_again(tiny: Path) -> None:
    with process("api.py", "--model", str(tiny), "--shutdown-timeout", "60", environment=QUIET) as api:
        busy = open_socket(api.wait_until_listening(), "/stream", {"prompt": "hello", "seed": 1})
        busy.recv(1)
        for _ in range(3):
            api.send(signal.SIGINT)
            time.sleep(0.05)
        assert api.wait() == 130
        assert "Traceback" not in api.stderr.text
        busy.close()


FEW_FILES = """
import resource, runpy, sys
sys.argv = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_NOFILE, (150, 150))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow  # a connection that finds the queue full tries again after a second
@pytest.mark.parametrize("script", ["api.py", "stream_api.py"])
def test_more_connections_than_files(script: str) -> None:
    """Those beyond the bound are closed, hardly anything is logged, and the server goes on when they have left."""
    with process("-c", FEW_FILES, script, environment=QUIET) as server:
        url = server.wait_until_listening()
        silent = [connect(url) for _ in range(200)]
        assert eventually(lambda: sum(_is_closed(each) for each in silent) > 100)
        for each in silent:
            each.close()
        assert eventually(lambda: _status(url) == 200)
        server.send(signal.SIGTERM)
        assert server.wait() == 0
        assert len(server.stderr.text.splitlines()) < 20
        assert "Traceback" not in server.stderr.text


def _is_closed(connection: socket.socket) -> bool:
    connection.settimeout(0)
    try:
        return connection.recv(1000) is not None
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


def _status(url: str) -> int:
    try:
        return httpx.get(f"{url}/health", timeout=PATIENCE_S).status_code
    except httpx.TransportError:
        return 0


@pytest.mark.parametrize("command", [serve, serve_polling])
def test_a_port_in_use_is_reported_before_the_model_is_loaded(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert command(["--port", port, "--model", "/no/such/folder"]) == 1
    assert capsys.readouterr().err == f"Port {port} on 127.0.0.1 is in use. Give another one with --port.\n"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--port", "99999"], "'99999' is not a whole number of 0 to 65535"),
        (["--max-running", "0"], "'0' is not a whole number of 1 or more"),
        (["--cors", "localhost"], "'localhost' is no origin"),
        (["--api-key", ""], "a key is made of ASCII characters"),
        (["--api-key", "a b"], "a key is made of ASCII characters"),
        (["--request-timeout", "-1"], "'-1' is not a number of seconds"),
        (["--cache-memory", "much"], "'much'"),
        (["--top-p", "7"], "top_p must be at least 0 and at most 1"),
    ],
)
def test_wrong_flags_are_usage_errors(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        serve(flags)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("key", ["", "open sesame"])
def test_a_bad_key_in_the_environment_is_an_error_that_does_not_show_it(
    key: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An empty variable must not leave the server open."""
    monkeypatch.setenv("CHATGLM_API_KEY", key)
    with pytest.raises(SystemExit) as caught:
        serve([])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert "environment variable CHATGLM_API_KEY: a key is made of ASCII characters" in error
    assert "sesame" not in error


def test_help_imports_little_and_does_not_show_the_key() -> None:
    """In a process that has imported nothing yet."""
    code = (
        "import sys; from chatglm.serving.commands import serve\ntry: serve(['--help'])\nfinally: print(*sys.modules)"
    )
    environment = {**os.environ, "CHATGLM_API_KEY": "sesame", "PYTHONIOENCODING": "utf-8"}
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, encoding="utf-8", check=True
    )
    assert "--api-key" in shown.stdout
    assert "sesame" not in shown.stdout
    modules = shown.stdout.splitlines()[-1].split()
    assert not {"torch", "transformers", "fastapi", "uvicorn", "flask"} & set(modules)


@pytest.mark.parametrize(("command", "package"), [(serve, "uvicorn"), (serve_polling, "fastapi")])
def test_a_missing_package_is_one_sentence(
    command: Command, package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "find_spec", lambda name: None if name == package else True)
    assert command(["--port", "0"]) == 1
    expected = f"This program needs {package}, which is not installed. Run: pip install {package}\n"
    assert capsys.readouterr().err == expected
