"""`python cli_demo.py` and `python -m chatglm chat`. torch is imported only after the flags are checked."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from chatglm.cli.flags import (
    ANSWER_FLAGS,
    MODEL_FLAGS,
    Parser,
    add_flags,
    answer_options,
    check_answer_options,
    model_options,
)
from chatglm.cli.interrupts import INTERRUPTED, leaving
from chatglm.demo import BANNER as DEMO_BANNER
from chatglm.errors import ChatGLMError
from chatglm.progress import ProgressBar
from chatglm.ui.session import ChatSession
from chatglm.ui.terminal.line_readers import make_reader, valid_text
from chatglm.ui.terminal.screen import Screen, prepare_streams
from chatglm.ui.terminal.terminal_chat import TerminalChat

if TYPE_CHECKING:
    from chatglm.pipeline import Pipeline

DESCRIPTION = """\
在终端与 ChatGLM-6B 对话。不给 --model 时运行随附的迷你演示模型。
Chat with ChatGLM-6B in this terminal. Without --model the bundled toy model runs."""
EPILOG = """\
管道 pipes:      每行一个问题，标准输出只有回答 / one question per line; stdout carries nothing but answers
退出码 exit code: 0 正常 ok, 1 出错 error, 2 参数有误 bad flag, 130 Ctrl+C"""
LOADING = "正在加载模型，请稍候 / loading the model ..."
LOADING_CANCELLED = "已取消加载 / loading was cancelled."


def main(argv: Sequence[str] | None = None) -> int:
    """Chat until the user leaves; returns the exit code. A wrong flag raises SystemExit(2)."""
    prepare_streams()
    parser = make_parser()
    arguments = parser.parse_args(argv)
    _check(parser, arguments)
    try:
        return _chat(arguments)
    except ChatGLMError as error:
        sys.stdout.flush()
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # in the moment between two handlers
        return INTERRUPTED
    except BrokenPipeError:
        # `cli_demo.py | head`: without this, Python would fail once more when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1


def make_parser() -> argparse.ArgumentParser:
    """The parser of the terminal chat's flags."""
    called = Path(sys.argv[0]).name
    prog = called if called == "cli_demo.py" else "python -m chatglm chat"
    parser = Parser(prog=prog, description=DESCRIPTION, epilog=EPILOG)
    add_flags(parser, "模型 model", MODEL_FLAGS)
    add_flags(parser, "回答 answers", ANSWER_FLAGS)
    group = parser.add_argument_group("终端 terminal")
    group.add_argument(
        "--prompt", metavar="TEXT", help="回答这一个问题后退出\nanswer this one question and exit (default: chat)"
    )
    group.add_argument(
        "--verbose",
        action="store_true",
        help="每次回答后显示 token 数、速度和结束原因\nshow tokens, speed and finish reason (default: off)",
    )
    return parser


def _check(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    check_answer_options(parser, answer_options(arguments))
    if arguments.prompt is not None and not arguments.prompt.strip():
        parser.error("--prompt is empty")


def _chat(arguments: argparse.Namespace) -> int:
    with leaving(LOADING_CANCELLED):
        chat = _make_chat(arguments)
    return chat.run() if arguments.prompt is None else chat.answer_once(valid_text(arguments.prompt))


def _make_chat(arguments: argparse.Namespace) -> TerminalChat:
    """Everything up to the first question, greeting included."""
    pipeline = _load(arguments)
    screen = Screen.of_streams(has_prompt_flag=arguments.prompt is not None)
    options = answer_options(arguments)
    if options["system"] is not None:
        options["system"] = valid_text(options["system"])
    session = ChatSession(pipeline, options)
    chat = TerminalChat(session, screen, make_reader(screen), is_verbose=arguments.verbose)
    if pipeline.is_demo:
        screen.note(DEMO_BANNER)
    if arguments.prompt is None:
        chat.greet()
    return chat


def _load(arguments: argparse.Namespace) -> Pipeline:
    """Load the model; a person at stderr is told why they wait."""
    if sys.stderr.isatty():
        print(LOADING, file=sys.stderr, flush=True)
    from chatglm.pipeline import load_pipeline

    def report(message: str) -> None:
        print(message, file=sys.stderr, flush=True)

    with ProgressBar(sys.stderr) as bar:
        return load_pipeline(**model_options(arguments), progress=bar, report=report)
