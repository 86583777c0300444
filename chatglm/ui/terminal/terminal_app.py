"""`python cli_demo.py` and `python -m chatglm chat`. torch is imported only after the flags are checked."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from chatglm.cli.console import program_name, report, run_command
from chatglm.cli.flags import ANSWER_FLAGS, MODEL_FLAGS, TERMINAL_FLAGS
from chatglm.cli.loading import LOADING_CANCELLED, load_from_flags
from chatglm.cli.parsing import Parser, add_flags, answer_options
from chatglm.cli.signals import INTERRUPTED, exit_on_interrupt
from chatglm.generation.text import whole_characters
from chatglm.ui.session import ChatSession
from chatglm.ui.terminal.keyboard import Keyboard
from chatglm.ui.terminal.line_readers import make_reader
from chatglm.ui.terminal.screen import Screen
from chatglm.ui.terminal.terminal_chat import DEMO_NOTE, TerminalChat

DESCRIPTION = """\
在终端与 ChatGLM-6B 对话。不给 --model 时运行随附的迷你演示模型。
Chat with ChatGLM-6B in this terminal. Without --model the bundled toy model runs."""
EPILOG = """\
管道 pipes:      每行一个问题，标准输出只有回答 / one question per line; stdout carries nothing but answers
退出码 exit code: 0 正常 ok, 1 出错 error, 2 参数有误 bad flag, 130 Ctrl+C"""


def main(argv: Sequence[str] | None = None) -> int:
    """Chat until the user leaves; returns the exit code. A wrong flag raises SystemExit(2)."""
    try:
        return run_command(make_parser(), argv, _chat)
    except KeyboardInterrupt:  # in the moment between two handlers
        return INTERRUPTED
    except OSError as error:  # a full disk; or a reader that has left, as in `cli_demo.py | head`
        if not isinstance(error, BrokenPipeError):
            report(f"输出失败 / The output failed: {error}")
        # Without this, it would fail once more when stdout is flushed at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1


def make_parser() -> argparse.ArgumentParser:
    """The parser of the terminal chat's flags."""
    prog = program_name("cli_demo.py", "python -m chatglm chat")
    parser = Parser(prog=prog, description=DESCRIPTION, epilog=EPILOG)
    add_flags(parser, "模型 model", MODEL_FLAGS)
    add_flags(parser, "回答 answers", ANSWER_FLAGS)
    group = add_flags(parser, "终端 terminal", TERMINAL_FLAGS)
    group.add_argument(
        "--prompt",
        metavar="TEXT",
        type=_question,
        help="回答这一个问题后退出\nanswer this one question and exit (default: chat)",
    )
    return parser


def _question(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("the question is empty")
    return whole_characters(text)


def _chat(arguments: argparse.Namespace) -> int:
    screen = Screen.of_streams(has_prompt_flag=arguments.prompt is not None, is_plain=arguments.plain)
    with Keyboard(is_used=screen.is_terminal) as keyboard:
        keyboard.on_continue = screen.keep_lines
        with exit_on_interrupt(LOADING_CANCELLED, keyboard.restore):
            chat = _make_chat(arguments, screen, keyboard)
        return chat.run() if arguments.prompt is None else chat.answer_once(arguments.prompt)


def _make_chat(arguments: argparse.Namespace, screen: Screen, keyboard: Keyboard) -> TerminalChat:
    """Everything up to the first question, greeting included."""
    notices: list[str] = []
    has_greeting = arguments.prompt is None
    pipeline = load_from_flags(arguments, on_licence=notices.append if has_greeting else report)
    options = answer_options(arguments)
    if options["system"] is not None:
        options["system"] = whole_characters(options["system"])
    reader = make_reader(screen, keyboard, keeps_history=arguments.history)
    chat = TerminalChat(ChatSession(pipeline, options), screen, reader, pipeline, is_verbose=arguments.verbose)
    if pipeline.is_demo and not screen.is_terminal:
        screen.note(DEMO_NOTE)
    if has_greeting:
        chat.greet(*notices)
    return chat
