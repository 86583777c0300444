"""`python api.py` and `python stream_api.py` as a person starts, uses and ends them."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import httpx
import openai
import pytest

from tests.serving.servers import MUCH, PATIENCE_S, eventually, open_socket, process
from tests.tiny import make_tiny_checkpoint

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


def test_sigterm_cancels_what_does_not_finish_and_exits_with_0(tiny: Path) -> None:
    """One stream is read, one is not, one connection asks nothing: none of them keeps the process."""
    flags = ["--model", str(tiny), "--shutdown-timeout", "0.5", "--no-log-requests"]
    with process("-m", "chatglm", "serve", *flags, environment=QUIET) as api:
        url = api.wait_until_listening()
        idle = socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])))
        stuck = open_socket(url, "/v1/chat/completions", MUCH, reads=False)
        with httpx.stream("POST", url + "/stream", json={"prompt": "hello", "seed": 1}, timeout=PATIENCE_S) as reply:
            lines = reply.iter_lines()
            next(lines)
            api.send(signal.SIGTERM)
            rest = list(lines)
        assert '"finish_reason":"' in rest[-2]
        assert api.wait() == 0
        idle.close()
        stuck.close()
        assert "Traceback" not in api.stderr.text


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
            api.send(signal.SIGTERM)
            # What was accepted can still be read; nothing more is taken.
            assert eventually(lambda: client.post("/chat", json={**ask, "request_id": "3"}).status_code == 503)
            assert eventually(lambda: (found := read("2"))["is_finished"] and found)["response"] == record["response"]
        assert api.wait() == 0
        assert "Traceback" not in api.stderr.text


@pytest.mark.parametrize("script", ["api.py", "stream_api.py"])
def test_a_port_in_use_is_found_out_before_the_model_is_loaded(script: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with process(script, "--port", port, "--model", "/no/such/folder") as api:
            assert api.wait() == 1
            assert api.stderr.text == f"Port {port} on 127.0.0.1 is in use. Give another one with --port.\n"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--port", "99999"], "'99999' is not a whole number of 0 to 65535"),
        (["--max-running", "0"], "'0' is not a whole number of 1 or more"),
        (["--cors", "localhost"], "'localhost' is no origin"),
        (["--api-key", ""], "a key is made of ASCII characters"),
        (["--api-key", "a b"], "a key is made of ASCII characters"),
        (["--request-timeout", "-1"], "'-1' is not a number of seconds"),
        (["--top-p", "7"], "top_p must be at least 0 and at most 1"),
    ],
)
def test_wrong_flags_are_usage_errors(flags: list[str], words: str) -> None:
    with process("api.py", *flags) as api:
        assert api.wait() == 2
        assert words in api.stderr.text


def test_help_is_quick_to_import_and_keeps_the_key() -> None:
    code = (
        "import sys; from chatglm.serving.commands import serve\ntry: serve(['--help'])\nfinally: print(*sys.modules)"
    )
    with process("-c", code, environment={"CHATGLM_API_KEY": "sesame"}) as shown:
        assert shown.wait() == 0
        assert "--api-key" in shown.stdout.text
        assert "sesame" not in shown.stdout.text
        modules = shown.stdout.text.splitlines()[-1].split()
        assert not {"torch", "transformers", "fastapi", "uvicorn", "flask"} & set(modules)


@pytest.mark.parametrize(("script", "package"), [("api.py", "uvicorn"), ("stream_api.py", "waitress")])
def test_a_missing_package_is_one_sentence(script: str, package: str, tmp_path: Path) -> None:
    """A finder that knows nothing of it stands in front of the others."""
    hide = f"""
import sys, importlib.util
whole = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == {package!r} else whole(name, *rest)
sys.argv = [{script!r}, "--port", "0"]
import runpy
runpy.run_path({script!r}, run_name="__main__")
"""
    with process("-c", hide) as api:
        assert api.wait() == 1
        expected = f"This program needs {package}, which is not installed. Run: pip install {package}\n"
        assert api.stderr.text == expected
