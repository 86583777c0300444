"""`api.py`, `stream_api.py`, `python -m chatglm serve`. Light imports: `--help` must not wait for torch or FastAPI."""

from __future__ import annotations

import argparse
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chatglm.cli.console import EXIT_CODES, program_name, report, run_command
from chatglm.cli.flags import ANSWER_FLAGS, MODEL_FLAGS, POLLING_FLAGS, SERVER_FLAGS, Flag
from chatglm.cli.loading import load_for_server
from chatglm.cli.parsing import Parser, add_flags, answer_options
from chatglm.cli.settings import Settings
from chatglm.cli.sockets import bind, is_public, url
from chatglm.demo import BANNER as DEMO_BANNER

if TYPE_CHECKING:
    from chatglm.pipeline import Pipeline

# Modules that both servers need, and the packages that have them.
PACKAGES = {
    "fastapi": "fastapi",
    "uvicorn": "uvicorn",
    "sse_starlette": "sse-starlette",
    "prometheus_client": "prometheus-client",
    "fastapi_offline": "fastapi-offline",
}
OPEN_TO_ALL = (
    "注意：未设置 --api-key，网络中的任何人都可以使用本服务\n"
    "Note: without --api-key anybody in the network can use this server."
)


@dataclass(frozen=True)
class ServerCommand:
    """One of the servers."""

    script: str  # the file users start
    otherwise: str  # the command that starts the same server
    description: str  # for `--help`
    run: str  # the function of chatglm.serving.server that serves until a signal comes
    own_flags: tuple[Flag, ...] = ()  # those the other server does not have


@dataclass(frozen=True)
class StartedServer:
    """What a server needs to run."""

    settings: Settings  # from the flags
    bound: socket.socket  # a socket that has its port and does not listen yet
    pipeline: Pipeline  # the model, its engine limited as the settings say

    def announce(self, details: str = "") -> None:
        """Print the address. For a program that reads stdout, this line means: ready."""
        if self.pipeline.is_demo:
            report(DEMO_BANNER)
        if is_public(self.bound) and self.settings.api_key is None:
            report(OPEN_TO_ALL)
        print(f"正在监听 / listening on {url(self.bound)}{details}", flush=True)


API = ServerCommand(
    script="api.py",
    otherwise="python -m chatglm serve",
    description="""\
HTTP 服务：POST /（与原版 api.py 相同）、POST /stream（SSE）、OpenAI 兼容接口 /v1/...、/health、/metrics、/docs。
HTTP server: POST / (as upstream's api.py), POST /stream (SSE), OpenAI-compatible /v1/..., /health, /metrics, /docs.
不给 --model 时运行随附的迷你演示模型 / without --model the bundled toy model runs.""",
    run="run",
)
POLLING = ServerCommand(
    script="stream_api.py",
    otherwise="python stream_api.py",
    description="""\
轮询式 HTTP 服务：POST /chat 提交问题，POST /get_response 读取目前为止的回答，POST /cancel 取消。
HTTP server to poll: POST /chat asks, POST /get_response reads the answer so far, POST /cancel ends it.
不给 --model 时运行随附的迷你演示模型 / without --model the bundled toy model runs.""",
    run="run_polling",
    own_flags=POLLING_FLAGS,
)


def serve(argv: Sequence[str] | None = None) -> int:
    """Run the FastAPI server until a signal ends it; returns the exit code."""
    return _run(API, argv)


def serve_polling(argv: Sequence[str] | None = None) -> int:
    """Run the polling server until a signal ends it; returns the exit code."""
    return _run(POLLING, argv)


def _run(command: ServerCommand, argv: Sequence[str] | None) -> int:
    parser = Parser(
        prog=program_name(command.script, command.otherwise), description=command.description, epilog=EXIT_CODES
    )
    add_flags(parser, "模型 model", MODEL_FLAGS)
    add_flags(parser, "回答的默认值 defaults of answers", ANSWER_FLAGS)
    add_flags(parser, "服务 server", [*SERVER_FLAGS, *command.own_flags])

    def run(arguments: argparse.Namespace) -> int:
        from chatglm.serving import server

        settings = Settings.from_flags(arguments, answer_options(arguments))
        with bind(settings.host, settings.port) as bound, load_for_server(arguments, settings) as pipeline:
            return int(getattr(server, command.run)(StartedServer(settings, bound, pipeline)))

    return run_command(parser, argv, run, PACKAGES)
