"""The command-line flags of every script and server, each with an environment variable that gives its default.

Imports stay light: `--help` must not wait for torch or a web framework.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from chatglm.cli.settings import DEFAULT_HOST, DEFAULT_PORT
from chatglm.cli.suggestions import did_you_mean
from chatglm.demo import DEMO_NAME
from chatglm.errors import InvalidRequestError
from chatglm.generation.config import CHAT_DEFAULTS
from chatglm.sizes import parse_bytes


@dataclass(frozen=True)
class Flag:
    """One flag, `name` as typed: `--top-p`; an empty `metavar` makes a switch, `--mmap` or `--no-mmap`.

    `parse` raises ValueError or ArgumentTypeError. `default` is the value without flag and variable, `shown_default`
    its description. `is_secret`: never print the variable's value; an empty variable is an error, not "no secret".
    """

    name: str
    metavar: str
    chinese: str
    english: str
    parse: Callable[[str], Any] = str
    default: Any = None
    shown_default: str = ""
    is_secret: bool = False

    @property
    def key(self) -> str:
        """The attribute of the parsed arguments, which is also the parameter of the pipeline: `top_p`."""
        return self.name.removeprefix("--").replace("-", "_")

    @property
    def variable(self) -> str:
        """The environment variable that gives the default: `CHATGLM_TOP_P`."""
        return f"CHATGLM_{self.key.upper()}"


def _one_of(*choices: str) -> Callable[[str], str]:
    """A parser of a closed list. argparse does not check its own `choices` for defaults, which variables give here."""

    def parse(text: str) -> str:
        if text not in choices:
            raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(choices)}{did_you_mean(text, choices)}")
        return text

    return parse


def switch(text: str) -> bool:
    """The value of a switch's environment variable."""
    return _one_of("0", "1")(text) == "1"


def _bits(text: str) -> int:
    return int(_one_of("4", "8")(text))


def _size(text: str) -> int:
    try:
        return parse_bytes(text)
    except InvalidRequestError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _whole(low: int, high: float = math.inf) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = int(text) if text.strip().lstrip("-").isdecimal() else None
        if value is None or not low <= value <= high:
            upper = f" to {high:g}" if high < math.inf else " or more"
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of {low}{upper}")
        return value

    return parse


def _seconds(text: str) -> float:
    """A duration; 0 is allowed, infinity is not."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return value


def _origins(text: str) -> tuple[str, ...]:
    """Comma-separated origins of web pages; an origin has a scheme and no path."""
    origins = tuple(origin.strip().rstrip("/") for origin in text.split(",") if origin.strip())
    for origin in origins:
        if origin != "*" and "://" not in origin:
            raise argparse.ArgumentTypeError(f"{origin!r} is no origin such as http://localhost:3000, nor *")
    return origins


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip().lower() for name in text.split(",") if name.strip())


def _key(text: str) -> str:
    """An API key; an empty one would leave the server open when a variable has no value."""
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        raise argparse.ArgumentTypeError("a key is made of ASCII characters without blanks, and not empty")
    return text


def _sampling(name: str, metavar: str, chinese: str, english: str, parse: Callable[[str], Any], own: str = "") -> Flag:
    """A flag whose default is the model's."""
    default = CHAT_DEFAULTS[name.removeprefix("--").replace("-", "_")]
    return Flag(name, metavar, chinese, english, parse, shown_default=f"{default}{own}")


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
        "--lora-checkpoint", "FOLDER", "LoRA 训练得到的文件夹", "folder that LoRA training wrote", shown_default="none"
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
_OWN = ", or what the model's generation_config.json says"
ANSWER_FLAGS = (
    _sampling("--max-length", "N", "提示与回答合计的最大 token 数", "tokens of prompt and answer together", int),
    _sampling("--top-p", "P", "核采样阈值，0–1", "sample from the best tokens with this much probability", float, _OWN),
    _sampling("--top-k", "K", "只从最好的 K 个 token 中采样，0 为不限", "sample from the K best, 0 = all", int, _OWN),
    _sampling("--temperature", "T", "采样温度，0 为贪心", "randomness of the sampling, 0 = greedy", float, _OWN),
    Flag(
        "--seed",
        "N",
        "随机种子：相同种子得到相同回答",
        "same seed, same answers",
        parse=int,
        shown_default="different every time",
    ),
    Flag(
        "--system", "TEXT", "放在对话最前面的指令", "instruction put in front of the conversation", shown_default="none"
    ),
)
SERVER_FLAGS = (
    Flag(
        "--host",
        "ADDRESS",
        "监听地址；0.0.0.0 对外开放",
        "address to listen on; 0.0.0.0 opens it to the network",
        default=DEFAULT_HOST,
    ),
    Flag(
        "--port",
        "N",
        "监听端口，0 为任意空闲端口",
        "port to listen on, 0 = any free one",
        parse=_whole(0, 65535),
        default=DEFAULT_PORT,
    ),
    Flag(
        "--cors",
        "ORIGINS",
        "允许调用的网页来源，逗号分隔，* 为全部",
        "origins of web pages that may call, comma-separated, * = all",
        parse=_origins,
        default=(),
        shown_default="none",
    ),
    Flag(
        "--allowed-hosts",
        "NAMES",
        "只监听本机且无密钥时，除 localhost 外还接受的主机名，逗号分隔，* 为全部",
        "names beside localhost that a server on this machine without a key answers to, comma-separated, * = all",
        parse=_names,
        default=(),
        shown_default="none",
    ),
    Flag("--max-running", "N", "同时生成的请求数", "requests answered at once", parse=_whole(1), default=10),
    Flag(
        "--max-waiting",
        "N",
        "排队的请求数，超出即拒绝",
        "requests that may wait; one more is refused",
        parse=_whole(0),
        default=20,
    ),
    Flag(
        "--cache-memory",
        "SIZE",
        "所有请求的 KV 缓存共用的内存上限，如 2G",
        "most memory for the KV caches of all requests, e.g. 2G",
        parse=_size,
        shown_default="a share of what is free",
    ),
    Flag(
        "--prefix-cache",
        "",
        "保留已结束请求的 KV 缓存，供开头相同的请求使用（ChatGLM-6B 双向读取上文，不适用）",
        "keep KV caches of ended requests for others that begin alike (not for ChatGLM-6B, which reads both ways)",
        parse=switch,
        default=True,
        shown_default="on",
    ),
    Flag(
        "--request-timeout",
        "SECONDS",
        "单个请求的最长时间，0 为不限",
        "longest time for one request, 0 = no limit",
        parse=_seconds,
        default=0.0,
        shown_default="0",
    ),
    Flag(
        "--shutdown-timeout",
        "SECONDS",
        "收到 SIGTERM 后留给进行中请求的时间",
        "time running answers get to finish after SIGTERM",
        parse=_seconds,
        default=10.0,
    ),
    Flag(
        "--log-requests",
        "",
        "打印每个请求与回答",
        "print every prompt and answer",
        parse=switch,
        default=True,
        shown_default="on",
    ),
    Flag(
        "--api-key",
        "KEY",
        "客户端须以 Authorization: Bearer KEY 提供的密钥",
        "key that clients must send as a bearer token",
        parse=_key,
        shown_default="none",
        is_secret=True,
    ),
)
POLLING_FLAGS = (
    Flag(
        "--record-ttl",
        "SECONDS",
        "已完成记录的保留时间",
        "how long a finished record is kept",
        parse=_seconds,
        default=3600.0,
    ),
    Flag("--max-records", "N", "最多保留的记录数", "records kept at most", parse=_whole(1), default=1000),
)


TERMINAL_FLAGS = (
    Flag(
        "--history",
        "",
        "在本机保存输入过的内容，供下次用 ↑ 取回",
        "keep what you typed on this machine, for the ↑ key of later chats",
        parse=switch,
        default=True,
        shown_default="on",
    ),
    Flag(
        "--plain",
        "",
        "不排版也不着色，原样显示回答",
        "show answers as they are, without Markdown and colour",
        parse=switch,
        default=False,
        shown_default="off; on with $NO_COLOR",
    ),
    Flag(
        "--verbose",
        "",
        "每次回答后显示 token 数、速度和结束原因",
        "show tokens, speed and finish reason after each answer",
        parse=switch,
        default=False,
        shown_default="off",
    ),
)
ALL_FLAGS = (*MODEL_FLAGS, *ANSWER_FLAGS, *SERVER_FLAGS, *POLLING_FLAGS, *TERMINAL_FLAGS)
OTHER_VARIABLES = ("CHATGLM_CACHE", "CHATGLM_KERNEL")
