"""`python -m chatglm COMMAND`: one row per command; a command's module is imported when it is called."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple, NoReturn

from chatglm.cli.console import prepare_streams, run_program
from chatglm.cli.parsing import Parser
from chatglm.errors import ChatGLMError


class Command(NamedTuple):
    """A module, the help line, and the name of its `(argv) -> int | None`."""

    module: str
    help: str
    function: str = "main"


COMMANDS = {
    "chat": Command("chatglm.ui.terminal.terminal_app", "talk to a model in this terminal"),
    "serve": Command("chatglm.serving.commands", "answer over HTTP: upstream's API, SSE, OpenAI-compatible", "serve"),
    "web": Command("chatglm.ui.gradio.gradio_app", "talk to a model on a web page"),
    "convert": Command("chatglm.cli.convert", "write a model folder as safetensors", "convert"),
    "quantize": Command("chatglm.cli.convert", "write a model folder with INT8 or INT4 weights", "quantize"),
    "doctor": Command("chatglm.cli.doctor", "report what is wrong with a model folder, and what this machine has"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command named by the first argument; returns the exit code."""
    prepare_streams()
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = Parser(prog="python -m chatglm", description="ChatGLM-6B: the commands of the suite.")
    rows = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=argparse.ArgumentParser)
    for name, command in COMMANDS.items():
        rows.add_parser(name, help=command.help, add_help=False)
    # Only the name is parsed here: what follows belongs to the command, `--help` included.
    name = parser.parse_args(arguments[:1]).command
    try:
        command = COMMANDS[name]
        return getattr(import_module(command.module), command.function)(arguments[1:]) or 0
    except ChatGLMError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def run() -> NoReturn:
    """The `chatglm` command."""
    run_program(main)


if __name__ == "__main__":
    run()
