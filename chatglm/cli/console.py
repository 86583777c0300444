"""The standard streams, messages on stderr, and the steps that every command takes from its flags to its end."""

from __future__ import annotations

import argparse
import atexit
import io
import os
import shutil
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from chatglm.cells import cell_width, cut, wrap
from chatglm.cli.parsing import answer_options, check_answer_options, misspelt_variables
from chatglm.errors import ChatGLMError

EXIT_CODES = "退出码 exit code: 0 SIGTERM, 1 出错 error, 2 参数有误 bad flag, 130 Ctrl+C"


def run_command(
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    run: Callable[[argparse.Namespace], int],
    packages: Mapping[str, str] | None = None,
) -> int:
    """Parse the flags, check them and the packages, and run; returns the exit code.

    A wrong flag raises SystemExit(2), as argparse does. A ChatGLMError becomes a line on stderr and exit code 1.
    """
    prepare_streams()
    for message in misspelt_variables():
        report(message)
    arguments = parser.parse_args(argv)
    check_answer_options(parser, answer_options(arguments))
    try:
        require_packages(packages or {})
        return run(arguments)
    except ChatGLMError as error:
        report(str(error))
        return 1


def run_program(main: Callable[[], int | None]) -> NoReturn:
    """Run the `main` of a script and end the process with its exit code.

    It ends after what an interpreter does last but one: threads, exit handlers, streams. Taking torch's modules apart
    as well would cost a fifth of the time that a start takes.
    """
    try:
        code = main() or 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        if isinstance(end.code, str):
            report(end.code)
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):  # the reader of the pipe has gone
        code = code or 1
    os._exit(code)


def program_name(script: str, otherwise: str) -> str:
    """What the user typed, for `--help`: the script, or the command that stands for it."""
    return script if Path(sys.argv[0]).name == script else otherwise


def prepare_streams() -> None:
    """Replace characters that a stream cannot encode, instead of ending the program."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def report(message: str) -> None:
    """Print a message for the user who started the program; stdout is for answers and addresses."""
    if sys.stderr.isatty():
        message = "\n".join(wrap(message, terminal_width()))
    print(message, file=sys.stderr, flush=True)


def terminal_width() -> int:
    """Cells of a line of the terminal."""
    return shutil.get_terminal_size().columns


class StatusLine:
    """What is going on, in a line of the terminal that `clear` takes away; nothing without a terminal."""

    def __init__(self, text: str) -> None:
        self._text = cut(text, terminal_width() - 1) if sys.stderr.isatty() else ""
        self._write(self._text)

    def clear(self) -> None:
        self._write(f"\r{' ' * cell_width(self._text)}\r" if self._text else "")
        self._text = ""

    def _write(self, text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()


def require_packages(packages: Mapping[str, str]) -> None:
    """Raise ChatGLMError with the pip command unless every module of a {module: package} mapping can be imported."""
    missing = [package for module, package in packages.items() if find_spec(module) is None]
    if missing:
        raise ChatGLMError(
            f"This program needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed.",
            f"Run: pip install {' '.join(missing)}",
        )
