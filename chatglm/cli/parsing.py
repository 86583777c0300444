"""Command lines: parsers with defaults from the environment, hints for what is misspelt, options for the pipeline."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from chatglm.cli.flags import ALL_FLAGS, ANSWER_FLAGS, MODEL_FLAGS, OTHER_VARIABLES, Flag
from chatglm.cli.suggestions import did_you_mean, nearest
from chatglm.errors import InvalidRequestError
from chatglm.generation.config import CHAT_DEFAULTS, GenerationConfig


class Parser(argparse.ArgumentParser):
    """A parser whose help keeps its lines (Chinese has no spaces to wrap at), whose flags are never abbreviated, and
    which asks whether a similar name was meant.
    """

    def __init__(
        self,
        *,
        prog: str,
        description: str,
        epilog: str | None = None,
        formatter: type[argparse.HelpFormatter] = argparse.RawTextHelpFormatter,
    ) -> None:
        super().__init__(
            prog=prog, description=description, epilog=epilog, allow_abbrev=False, formatter_class=formatter
        )

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        arguments, unknown = self.parse_known_args(args, namespace)
        if unknown:
            flag = next((word.partition("=")[0] for word in unknown if word.startswith("-")), "")
            hint = did_you_mean(flag, self._option_string_actions) if flag else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return arguments

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            hint = did_you_mean(str(value), map(str, action.choices or ()))
            raise argparse.ArgumentError(action, f"{error.message}{hint}") from None


def add_flags(
    parser: argparse.ArgumentParser, title: str, flags: Iterable[Flag], environment: Mapping[str, str] = os.environ
) -> argparse._ArgumentGroup:
    """Add a group of flags, with values of the environment as defaults; returns it."""
    group = parser.add_argument_group(title)
    for flag in flags:
        value = environment.get(flag.variable)
        is_given = bool(value) or (flag.is_secret and value is not None)
        default = _parse_variable(parser, flag, value or "") if is_given else flag.default
        shown = (not flag.is_secret and value) or flag.shown_default or flag.default
        note = " keeps it out of the process list" if flag.is_secret else ""
        words = f"{flag.chinese}\n{flag.english}\n(default: {shown}; ${flag.variable}{note})".replace("%", "%%")
        if flag.metavar:
            group.add_argument(flag.name, metavar=flag.metavar, type=flag.parse, default=default, help=words)
        else:
            group.add_argument(flag.name, action=argparse.BooleanOptionalAction, help=words)
            parser.set_defaults(**{flag.key: default})  # here, or some versions would write it into the help again
    return group


def _parse_variable(parser: argparse.ArgumentParser, flag: Flag, value: str) -> Any:
    """The value of an environment variable; a bad one ends the program as a bad flag does, but names the variable."""
    try:
        return flag.parse(value)
    except (ValueError, argparse.ArgumentTypeError) as error:
        problem = str(error) if flag.is_secret else f"{value!r} is no value for {flag.name}"
        parser.error(f"environment variable {flag.variable}: {problem}")


def misspelt_variables(environment: Mapping[str, str] = os.environ) -> list[str]:
    """A message for each CHATGLM_ variable that has no effect but is much like one that has."""
    known = {*OTHER_VARIABLES, *(flag.variable for flag in ALL_FLAGS)}
    names = [name for name in environment if name.startswith("CHATGLM_") and name not in known]
    pairs = [(name, nearest(name, known, cutoff=0.9)) for name in names]
    return [
        f"环境变量 {name} 不起作用，是不是 {meant}？The variable has no effect; did you mean {meant}?"
        for name, meant in pairs
        if meant
    ]


def model_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments of `load_pipeline`."""
    return {flag.key: getattr(arguments, flag.key) for flag in MODEL_FLAGS}


def answer_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments of `Pipeline.stream`; None = the model's default."""
    return {flag.key: getattr(arguments, flag.key) for flag in ANSWER_FLAGS}


def check_answer_options(parser: argparse.ArgumentParser, options: Mapping[str, Any]) -> None:
    """End with a usage error for a value out of range now, not after a long load."""
    try:
        GenerationConfig.of(CHAT_DEFAULTS, **{name: value for name, value in options.items() if name != "system"})
    except InvalidRequestError as error:
        parser.error(str(error))
