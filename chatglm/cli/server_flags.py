"""The flags of the servers, beside those every door shares.

Knows: names, ranges and the sentence about each flag; how parsed flags become `Settings`. Stays light: `--help` must
not wait for torch or a web framework. Does not know what a server does with a setting.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Iterable, Mapping

from chatglm.cli.flags import ANSWER_FLAGS, MODEL_FLAGS, Flag, Parser, add_flags, answer_options, switch
from chatglm.cli.settings import DEFAULT_HOST, DEFAULT_PORT, Settings
from chatglm.sizes import parse_bytes

API_KEY_VARIABLE = "CHATGLM_API_KEY"


def _whole(low: int, high: float = math.inf) -> Callable[[str], int]:
    """A parser of whole numbers in a range."""

    def parse(text: str) -> int:
        value = int(text) if text.strip().lstrip("-").isdecimal() else None
        if value is None or not low <= value <= high:
            upper = f" to {high:g}" if high < math.inf else " or more"
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of {low}{upper}")
        return value

    return parse


def _seconds(text: str) -> float:
    """A length of time; 0 is allowed, infinity is not."""
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


def _key(text: str) -> str:
    """An API key; an empty one would leave the door open for want of a variable's value."""
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        raise argparse.ArgumentTypeError("a key is made of ASCII characters without blanks, and not empty")
    return text


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
        parse=parse_bytes,
        shown_default="a share of what is free",
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
    Flag(
        "--max-records",
        "N",
        "最多保留的记录数",
        "records kept at most",
        parse=_whole(1),
        default=1000,
    ),
)


def make_parser(
    prog: str,
    description: str,
    epilog: str,
    own_flags: Iterable[Flag] = (),
    environment: Mapping[str, str] = os.environ,
) -> Parser:
    """All flags of one server."""
    parser = Parser(prog=prog, description=description, epilog=epilog)
    add_flags(parser, "模型 model", MODEL_FLAGS, environment)
    add_flags(parser, "回答的默认值 defaults of answers", ANSWER_FLAGS, environment)
    add_flags(parser, "服务 server", [*SERVER_FLAGS, *own_flags], environment)
    # Not through add_flags: `--help` would print the key it finds in the environment.
    parser.add_argument(
        "--api-key",
        metavar="KEY",
        type=_key,
        default=environment.get(API_KEY_VARIABLE),
        help=f"客户端须以 Authorization: Bearer KEY 提供的密钥\nkey that clients must send as a bearer token\n"
        f"(default: none; ${API_KEY_VARIABLE} keeps it out of the process list)",
    )
    return parser


def make_settings(arguments: argparse.Namespace) -> Settings:
    """What the flags say; flags of the other server keep their defaults."""
    own = {flag.key: getattr(arguments, flag.key) for flag in POLLING_FLAGS if hasattr(arguments, flag.key)}
    return Settings(
        host=arguments.host,
        port=arguments.port,
        api_key=arguments.api_key,
        cors=arguments.cors,
        max_running=arguments.max_running,
        max_waiting=arguments.max_waiting,
        cache_memory=arguments.cache_memory,
        request_timeout=arguments.request_timeout or None,
        shutdown_timeout=arguments.shutdown_timeout,
        logs_requests=arguments.log_requests,
        defaults={name: value for name, value in answer_options(arguments).items() if value is not None},
        **own,
    )
