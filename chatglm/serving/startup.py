"""What every server does before it listens: packages, flags, port, model; and what it says meanwhile.

Knows: the order of things, and that torch is imported only after the flags are right. Does not know a web framework.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from chatglm.cli.flags import Flag, answer_options, check_answer_options, model_options
from chatglm.cli.interrupts import leaving
from chatglm.cli.server_flags import make_parser, make_settings
from chatglm.cli.settings import Settings
from chatglm.cli.signals import ending_at_once
from chatglm.demo import BANNER as DEMO_BANNER
from chatglm.errors import ChatGLMError
from chatglm.progress import ProgressBar
from chatglm.serving.listening import bind, is_public, url
from chatglm.serving.packages import require
from chatglm.ui.terminal.screen import prepare_streams

if TYPE_CHECKING:
    from chatglm.pipeline import Pipeline

LOADING = "正在加载模型，请稍候 / loading the model ..."
LOADING_CANCELLED = "已取消加载 / loading was cancelled."
OPEN_TO_ALL = (
    "注意：未设置 --api-key，网络中的任何人都可以使用本服务\n"
    "Note: without --api-key anybody in the network can use this server."
)
EPILOG = """\
退出码 exit code: 0 SIGTERM, 1 出错 error, 2 参数有误 bad flag, 130 Ctrl+C"""


@dataclass(frozen=True)
class Door:
    """One of the servers.

    Attributes:
        script: the file people start.
        otherwise: what they typed if it was not that file.
        description: what it is, for `--help`.
        packages: {module: package} it stands on.
        own_flags: those only it has.
    """

    script: str
    otherwise: str
    description: str
    packages: dict[str, str]
    own_flags: Iterable[Flag] = ()


@dataclass(frozen=True)
class Start:
    """A server that has all it needs.

    Attributes:
        settings: what the flags say.
        bound: a socket that has its port and does not listen yet.
        pipeline: the model, its engine limited as the settings say.
    """

    settings: Settings
    bound: socket.socket
    pipeline: Pipeline

    def announce(self, more: str = "") -> None:
        """Say where the server is. For a program that reads stdout, this line means: ready."""
        if self.pipeline.is_demo:
            say(DEMO_BANNER)
        if is_public(self.bound) and self.settings.api_key is None:
            say(OPEN_TO_ALL)
        print(f"正在监听 / listening on {url(self.bound)}{more}", flush=True)


def run_door(door: Door, argv: Sequence[str] | None, serve: Callable[[Start], int]) -> int:
    """From flags to exit code. A wrong flag raises SystemExit(2), as argparse does."""
    prepare_streams()
    called = Path(sys.argv[0]).name
    parser = make_parser(
        called if called == door.script else door.otherwise, door.description, EPILOG, own_flags=door.own_flags
    )
    arguments = parser.parse_args(argv)
    check_answer_options(parser, answer_options(arguments))
    try:
        require(door.packages)
        with _started(arguments) as start:
            return serve(start)
    except ChatGLMError as error:
        say(str(error))
        return 1


def say(sentence: str) -> None:
    """A sentence for whoever started the server; stdout is for its address and its requests."""
    print(sentence, file=sys.stderr, flush=True)


@contextmanager
def _started(arguments: argparse.Namespace) -> Iterator[Start]:
    """Take the port, then load the model; both are given back in the end."""
    settings = make_settings(arguments)
    with bind(settings.host, settings.port) as bound:
        with ending_at_once(), leaving(LOADING_CANCELLED):
            pipeline = load_model(arguments, settings)
        with pipeline:
            yield Start(settings, bound, pipeline)


def load_model(arguments: argparse.Namespace, settings: Settings) -> Pipeline:
    """The model that the flags name, with an engine limited as the settings say; what goes on is said on stderr.

    Raises:
        ChatGLMError: it cannot be had.
    """
    # A server's own threads need the processors too. OpenMP's would spin while they wait for one that has lost its
    # processor, and answers that take a second could then take minutes. Read by the library when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if sys.stderr.isatty():
        say(LOADING)
    from chatglm.pipeline import load_pipeline  # torch and transformers: seconds, so not before the flags are right

    with ProgressBar(sys.stderr) as bar:
        pipeline = load_pipeline(**model_options(arguments), progress=bar, report=say)
    engine = pipeline.start_engine(
        max_running=settings.max_running, max_waiting=settings.max_waiting, memory_limit=settings.cache_memory
    )
    engine.warm_up()
    return pipeline
