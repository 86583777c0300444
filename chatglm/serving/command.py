"""`python api.py`, `python stream_api.py`, `python -m chatglm serve`: which server each of them is.

Knows: the doors and their words. Stays light: `--help` must not wait for torch or a web framework.
"""

from __future__ import annotations

from collections.abc import Sequence

from chatglm.cli.server_flags import POLLING_FLAGS
from chatglm.serving import packages
from chatglm.serving.startup import Door, Start, run_door

API = Door(
    script="api.py",
    otherwise="python -m chatglm serve",
    description="""\
HTTP 服务：POST /（与原版 api.py 相同）、POST /stream（SSE）、OpenAI 兼容接口 /v1/...、/health、/metrics、/docs。
HTTP server: POST / (as upstream's api.py), POST /stream (SSE), OpenAI-compatible /v1/..., /health, /metrics, /docs.
不给 --model 时运行随附的迷你演示模型 / without --model the bundled toy model runs.""",
    packages=packages.API,
)
POLLING = Door(
    script="stream_api.py",
    otherwise="python stream_api.py",
    description="""\
轮询式 HTTP 服务：POST /chat 提交问题，POST /get_response 读取目前为止的回答，POST /cancel 取消。
HTTP server to poll: POST /chat asks, POST /get_response reads the answer so far, POST /cancel ends it.
不给 --model 时运行随附的迷你演示模型 / without --model the bundled toy model runs.""",
    packages=packages.POLLING,
    own_flags=POLLING_FLAGS,
)


def serve(argv: Sequence[str] | None = None) -> int:
    """Run the FastAPI server until a signal ends it; returns the exit code."""

    def run(start: Start) -> int:
        from chatglm.serving.http_server import run_http

        return run_http(start)

    return run_door(API, argv, run)


def serve_polling(argv: Sequence[str] | None = None) -> int:
    """Run the polling server until a signal ends it; returns the exit code."""

    def run(start: Start) -> int:
        from chatglm.serving.polling.server import run_polling

        return run_polling(start)

    return run_door(POLLING, argv, run)
