"""The standard streams, messages on stderr, and the steps that every command takes from its flags to its exit code."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from chatglm.cli.flags import answer_options, check_answer_options
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
    arguments = parser.parse_args(argv)
    check_answer_options(parser, answer_options(arguments))
    try:
        require_packages(packages or {})
        return run(arguments)
    except ChatGLMError as error:
        report(str(error))
        return 1


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
    print(message, file=sys.stderr, flush=True)


def require_packages(packages: Mapping[str, str]) -> None:
    """Raise ChatGLMError with the pip command unless every module of a {module: package} mapping can be imported."""
    missing = [package for module, package in packages.items() if find_spec(module) is None]
    if missing:
        raise ChatGLMError(
            f"This program needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed.",
            f"Run: pip install {' '.join(missing)}",
        )
