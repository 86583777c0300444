"""`python cli_demo.py` and `python -m chatglm chat`: from flags to exit code.

Knows: the order of things (streams, flags, model, chat) and that torch is imported only after the flags are right.
Does not know how a chat goes on (`session.py`).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from chatglm.cli.console import prepare_streams
from chatglm.cli.flags import (
    ANSWER_FLAGS,
    MODEL_FLAGS,
    Parser,
    add_flags,
    answer_options,
    check_answer_options,
)
from chatglm.cli.loading import LOADING_CANCELLED, load_from_flags
from chatglm.cli.signals import INTERRUPTED, exit_on_interrupt
from chatglm.demo import BANNER as DEMO_BANNER
from chatglm.errors import ChatGLMError
from chatglm.ui.conversation import Conversation
from chatglm.ui.terminal.loop import Session
from chatglm.ui.terminal.reading import choose_reader, sound_text
from chatglm.ui.terminal.screen import Screen

DESCRIPTION = """\
在终端与 ChatGLM-6B 对话。不给 --model 时运行随附的迷你演示模型。
Chat with ChatGLM-6B in this terminal. Without --model the bundled toy model runs."""
EPILOG = """\
管道 pipes:      每行一个问题，标准输出只有回答 / one question per line; stdout carries nothing but answers
退出码 exit code: 0 正常 ok, 1 出错 error, 2 参数有误 bad flag, 130 Ctrl+C"""


def main(argv: Sequence[str] | None = None) -> int:
    """Chat until the user leaves; returns the exit code. A wrong flag raises SystemExit(2), as argparse does."""
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
        # `cli_demo.py | head`: whoever read has seen enough. Python must not stumble over the rest when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1


def make_parser() -> argparse.ArgumentParser:
    """All flags of the terminal chat."""
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
    with exit_on_interrupt(LOADING_CANCELLED):
        session = _make_session(arguments)
    return session.run() if arguments.prompt is None else session.answer_once(sound_text(arguments.prompt))


def _make_session(arguments: argparse.Namespace) -> Session:
    """Everything up to the first question, greeting included."""
    pipeline = load_from_flags(arguments)
    screen = Screen.of_streams(has_prompt_flag=arguments.prompt is not None)
    options = answer_options(arguments)
    if options["system"] is not None:
        options["system"] = sound_text(options["system"])
    conversation = Conversation(pipeline, options)
    session = Session(conversation, screen, choose_reader(screen), is_verbose=arguments.verbose)
    if pipeline.is_demo:
        screen.note(DEMO_BANNER)
    if arguments.prompt is None:
        session.greet()
    return session
