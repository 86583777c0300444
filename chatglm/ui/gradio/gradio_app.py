"""`python web_demo.py` and `python -m chatglm web`: serves the Gradio page; nothing leaves this machine."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from typing import TYPE_CHECKING

from chatglm.cli.console import EXIT_CODES, program_name, report, run_command
from chatglm.cli.flags import ANSWER_FLAGS, MODEL_FLAGS, SERVER_FLAGS, Flag, switch
from chatglm.cli.loading import load_for_server
from chatglm.cli.local_access import LocalAccess
from chatglm.cli.parsing import Parser, add_flags, answer_options
from chatglm.cli.settings import Settings
from chatglm.cli.signals import record_stop_signals
from chatglm.cli.sockets import bind, is_loopback, is_public, url
from chatglm.errors import ChatGLMError

if TYPE_CHECKING:
    from starlette.middleware import Middleware

    from chatglm.pipeline import Pipeline

DEFAULT_PORT = 7860
DESCRIPTION = """\
用网页与 ChatGLM-6B 对话。
Chat with ChatGLM-6B on a web page."""
SPARE_THREADS = 32  # of those who are refused, and of everything but answers
PACKAGES = {"gradio": "gradio", "markdown_it": "markdown-it-py", "latex2mathml": "latex2mathml"}
OPEN_TO_ALL = (
    "注意：未设置 --auth，网络中的任何人都可以使用本页面\n"
    "Note: without --auth anybody in the network can use this page."
)
NO_SHARE = (
    "没有得到公开链接：无法连接 Gradio 的服务\n"
    "There is no public link: Gradio's service cannot be reached. The page works at the address below."
)


def _credentials(text: str) -> tuple[str, str]:
    user, colon, password = text.partition(":")
    if not (user and colon and password):
        raise argparse.ArgumentTypeError("write it as USER:PASSWORD")
    return user, password


_SHARED = {flag.key: flag for flag in SERVER_FLAGS}
PAGE_FLAGS = (
    _SHARED["host"],
    replace(_SHARED["port"], default=DEFAULT_PORT),
    Flag(
        "--share", "", "通过 Gradio 的服务得到公开链接", "a public link through Gradio's service", switch, False, "off"
    ),
    Flag("--inbrowser", "", "在浏览器中打开页面", "open the page in the browser", switch, False, "off"),
    _SHARED["allowed_hosts"],
    _SHARED["max_running"],
    _SHARED["max_waiting"],
    _SHARED["cache_memory"],
    Flag(
        "--auth",
        "USER:PASSWORD",
        "打开页面所需的用户名和密码",
        "user name and password that visitors must type",
        _credentials,
        shown_default="none",
        is_secret=True,
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Serve the page until a signal comes; returns the exit code. A wrong flag raises SystemExit(2)."""
    return run_command(make_parser(), argv, _run, PACKAGES)


def make_parser() -> Parser:
    """The parser of the page's flags."""
    prog = program_name("web_demo.py", "python -m chatglm web")
    parser = Parser(prog=prog, description=DESCRIPTION, epilog=EXIT_CODES)
    add_flags(parser, "模型 model", MODEL_FLAGS)
    add_flags(parser, "滑块的初始值 initial values of the sliders", ANSWER_FLAGS)
    add_flags(parser, "页面 page", PAGE_FLAGS)
    return parser


def _run(arguments: argparse.Namespace) -> int:
    settings = Settings(
        host=arguments.host,
        port=arguments.port,
        max_running=arguments.max_running,
        max_waiting=arguments.max_waiting,
        cache_memory=arguments.cache_memory,
    )
    with bind(settings.host, settings.port) as bound:
        pipeline = load_for_server(arguments, settings)
        address, is_open = url(bound), is_public(bound) and not arguments.auth
        port = bound.getsockname()[1]
    # Gradio binds the port itself: the socket has only shown that it is free and is closed now.
    with pipeline, record_stop_signals() as signals, serving(pipeline, arguments, port) as is_shared:
        if is_open:
            report(OPEN_TO_ALL)
        if arguments.share and not is_shared:
            report(NO_SHARE)
        print(f"正在监听 / listening on {address}", flush=True)
        signals.wait()
        return signals.exit_code


def _protection(arguments: argparse.Namespace) -> list[Middleware]:
    """Against pages of other sites, where nobody else could open this one anyway."""
    from starlette.middleware import Middleware

    if arguments.auth or arguments.share or not is_loopback(arguments.host):
        return []
    return [Middleware(LocalAccess, hosts=arguments.allowed_hosts)]


@contextmanager
def serving(pipeline: Pipeline, arguments: argparse.Namespace, port: int) -> Iterator[bool]:
    """Serve the page inside the block; yields whether there is a public link.

    Raises:
        ChatGLMError: the port is in use by now.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported
    os.environ["GRADIO_RUN_HISTORY"] = "False"  # it would keep all questions and answers in the browser a second time
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from starlette.middleware import Middleware

    from chatglm.ui.gradio.first_paint import FirstPaint
    from chatglm.ui.gradio.gradio_page import THEME, GradioPage
    from chatglm.ui.gradio.page_requests import PageRequests

    page = GradioPage(pipeline, answer_options(arguments))
    try:
        with redirect_stdout(sys.stderr):  # stdout is for the address only
            _, _, public = page.blocks.launch(
                server_name=arguments.host,
                server_port=port,
                share=arguments.share,
                inbrowser=arguments.inbrowser,
                auth=arguments.auth,
                prevent_thread_lock=True,
                quiet=not arguments.share,
                ssr_mode=False,
                pwa=False,
                theme=THEME,
                footer_links=[],
                # The engine has the queue, not Gradio: everybody is let in, to see their place or be refused.
                max_threads=arguments.max_running + arguments.max_waiting + SPARE_THREADS,
                enable_monitoring=False,
                app_kwargs={"middleware": [*_protection(arguments), Middleware(PageRequests), Middleware(FirstPaint)]},
            )
    except OSError:
        raise ChatGLMError(f"Port {port} on {arguments.host} is in use.", "Give another one with --port.") from None
    try:
        yield public is not None
    finally:
        page.close()
