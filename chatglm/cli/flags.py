"""The flags that every door shares, spelled once, with an environment variable behind each.

Knows: names, types, defaults and the sentence about each flag. Stays light: `--help` must not wait for torch.
Does not know what a door does with the values.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from chatglm.demo import DEMO_NAME
from chatglm.errors import InvalidRequestError
from chatglm.generation.config import CHAT_DEFAULTS, GenerationConfig
from chatglm.sizes import parse_bytes


@dataclass(frozen=True)
class Flag:
    """One flag of the vocabulary.

    Attributes:
        name: as typed, `--top-p`.
        metavar: what stands for the value in `--help`; empty for a switch, `--mmap` or `--no-mmap`.
        chinese: what it does.
        english: the same.
        parse: text to value; raises ValueError or ArgumentTypeError.
        default: the value when neither flag nor variable is given.
        shown_default: the default in words, where the value itself says little.
    """

    name: str
    metavar: str
    chinese: str
    english: str
    parse: Callable[[str], Any] = str
    default: Any = None
    shown_default: str = ""

    @property
    def key(self) -> str:
        """The attribute of the parsed arguments, which is also the parameter of the pipeline: `top_p`."""
        return self.name.removeprefix("--").replace("-", "_")

    @property
    def variable(self) -> str:
        """The environment variable that gives the default: `CHATGLM_TOP_P`."""
        return f"CHATGLM_{self.key.upper()}"


def _one_of(*choices: str) -> Callable[[str], str]:
    """A parser of a closed list. argparse's own `choices` are not checked for defaults, which variables give here."""

    def parse(text: str) -> str:
        if text not in choices:
            raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(choices)}")
        return text

    return parse


def _bits(text: str) -> int:
    return int(_one_of("4", "8")(text))


def _size(text: str) -> int:
    try:
        return parse_bytes(text)
    except InvalidRequestError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def switch(text: str) -> bool:
    """The value of a switch's environment variable; the parser of flags without a value."""
    return _one_of("0", "1")(text) == "1"


MODEL_FLAGS = (
    Flag(
        "--model",
        "MODEL",
        "模型文件夹、hub 名称或 demo",
        'model folder, hub id, or "demo" for the bundled toy model',
        shown_default=DEMO_NAME,
    ),
    Flag("--device", "DEVICE", "运行设备", "auto, cpu, cuda, cuda:N or mps", default="auto"),
    Flag(
        "--dtype",
        "TYPE",
        "数值类型",
        "auto, fp32, bf16 or fp16",
        parse=_one_of("auto", "fp32", "bf16", "fp16"),
        default="auto",
    ),
    Flag("--quantize", "BITS", "量化位数：4 或 8", "quantize to 4 or 8 bits", parse=_bits, shown_default="off"),
    Flag(
        "--ptuning-checkpoint",
        "FOLDER",
        "P-Tuning v2 训练得到的文件夹",
        "folder that P-Tuning v2 training wrote",
        shown_default="none",
    ),
    Flag(
        "--lora-checkpoint",
        "FOLDER",
        "LoRA 训练得到的文件夹",
        "folder that LoRA training wrote",
        shown_default="none",
    ),
    Flag(
        "--mmap",
        "",
        "直接使用映射到内存的权重文件，启动几乎无需等待（仅限 CPU）",
        "use weights in the mapped files: hardly a wait at the start (CPU only)",
        parse=switch,
        default=False,
        shown_default="off",
    ),
    Flag(
        "--max-memory",
        "SIZE",
        "权重占用内存的上限，如 2G；放不下的层在每个 token 时重新读取（仅限 CPU）",
        "most memory for the weights, e.g. 2G; layers beyond it are read for every token (CPU only)",
        parse=_size,
        shown_default="no limit",
    ),
)


def _sampling_flag(
    name: str, metavar: str, chinese: str, english: str, parse: Callable[[str], Any], own: str = ""
) -> Flag:
    """A flag whose value, when not given, is the model's business."""
    flag = Flag(name, metavar, chinese, english, parse)
    return Flag(name, metavar, chinese, english, parse, shown_default=f"{CHAT_DEFAULTS[flag.key]}{own}")


_OWN = ", or what the model's generation_config.json says"
ANSWER_FLAGS = (
    _sampling_flag("--max-length", "N", "提示与回答合计的最大 token 数", "tokens of prompt and answer together", int),
    _sampling_flag(
        "--top-p", "P", "核采样阈值，0–1", "sample from the best tokens with this much probability", float, _OWN
    ),
    _sampling_flag(
        "--top-k", "K", "只从最好的 K 个 token 中采样，0 为不限", "sample from the K best, 0 = all", int, _OWN
    ),
    _sampling_flag("--temperature", "T", "采样温度，0 为贪心", "randomness of the sampling, 0 = greedy", float, _OWN),
    Flag(
        "--seed",
        "N",
        "随机种子：相同种子得到相同回答",
        "same seed, same answers on the same device",
        parse=int,
        shown_default="different every time",
    ),
    Flag(
        "--system",
        "TEXT",
        "放在对话最前面的指令",
        "instruction put in front of the conversation",
        shown_default="none",
    ),
)


class Parser(argparse.ArgumentParser):
    """A parser whose help keeps its lines (Chinese has no spaces to wrap at) and whose flags are never abbreviated."""

    def __init__(self, *, prog: str, description: str, epilog: str) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=epilog,
            allow_abbrev=False,
            formatter_class=argparse.RawTextHelpFormatter,
        )


def add_flags(
    parser: argparse.ArgumentParser, title: str, flags: Iterable[Flag], environment: Mapping[str, str] = os.environ
) -> None:
    """Add a group of flags, with values of the environment as defaults."""
    group = parser.add_argument_group(title)
    for flag in flags:
        value = environment.get(flag.variable, "")
        default = _parse_variable(parser, flag, value) if value else flag.default
        shown = value or flag.shown_default or flag.default
        words = f"{flag.chinese}\n{flag.english}\n(default: {shown}; ${flag.variable})".replace("%", "%%")
        if flag.metavar:
            group.add_argument(flag.name, metavar=flag.metavar, type=flag.parse, default=default, help=words)
        else:
            group.add_argument(flag.name, action=argparse.BooleanOptionalAction, help=words)
            parser.set_defaults(**{flag.key: default})  # here, or some versions would write it into the help again


def _parse_variable(parser: argparse.ArgumentParser, flag: Flag, value: str) -> Any:
    """The value of an environment variable; a bad one ends the program as a bad flag does, but names the variable."""
    try:
        return flag.parse(value)
    except (ValueError, argparse.ArgumentTypeError):
        parser.error(f"environment variable {flag.variable}: {value!r} is no value for {flag.name}")


def model_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments of `load_pipeline`."""
    return {flag.key: getattr(arguments, flag.key) for flag in MODEL_FLAGS}


def answer_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments of `Pipeline.stream`; None means "as the model says"."""
    return {flag.key: getattr(arguments, flag.key) for flag in ANSWER_FLAGS}


def check_answer_options(parser: argparse.ArgumentParser, options: Mapping[str, Any]) -> None:
    """End with a usage error for a value out of range now, not after a long load."""
    try:
        GenerationConfig.of(CHAT_DEFAULTS, **{name: value for name, value in options.items() if name != "system"})
    except InvalidRequestError as error:
        _refuse(parser, error)


def _refuse(parser: argparse.ArgumentParser, error: InvalidRequestError) -> NoReturn:
    parser.error(str(error))
