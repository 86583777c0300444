"""The configuration of a server, and how parsed flags become one."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from chatglm.cli.sockets import is_loopback

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8000
MAX_BODY_BYTES = 10 * 1024 * 1024


@dataclass(frozen=True)
class Settings:
    """One server."""

    host: str = DEFAULT_HOST  # address to listen on; 127.0.0.1 is reachable from this machine only
    port: int = DEFAULT_PORT  # 0 takes any free one
    api_key: str | None = None  # what clients must send as `Authorization: Bearer KEY`; None = no authentication
    cors: tuple[str, ...] = ()  # origins of web pages that may call; ("*",) is all, () is none
    # names beside localhost under which a server on a loopback address without a key may be called; ("*",) is all
    allowed_hosts: tuple[str, ...] = ()
    max_running: int = 10  # requests answered at once
    max_waiting: int = 20  # requests that may wait; one more is rejected
    cache_memory: int | None = None  # bytes for the KV caches of all running requests; None = a share of what is free
    prefix_cache: bool = True  # whether prompts reuse what is known of prompts that began alike
    request_timeout: float | None = None  # seconds from a request's arrival until its answer is ended; None = no limit
    # seconds that running answers get to finish after SIGTERM, before they are cancelled
    shutdown_timeout: float = 10.0
    header_timeout: float = 15.0  # seconds until the headers of a request are complete
    body_timeout: float = 60.0  # and its body
    max_connections: int = 1000  # open at once; more are turned away
    heartbeat: float = 15.0  # seconds of silence after which a stream carries a comment line
    logs_requests: bool = True  # whether prompts and answers are printed, as upstream does
    defaults: Mapping[str, Any] = field(default_factory=dict)  # generation parameters used where a request gives none
    system: str | None = None  # system message of chats that have none of their own; raw completions never get it
    record_ttl: float = 3600.0  # polling API: seconds a finished record is kept
    max_records: int = 1000  # polling API: records kept at most; the oldest finished ones go first

    @property
    def is_local(self) -> bool:
        """Whether it listens for this machine only."""
        return is_loopback(self.host)

    @classmethod
    def from_flags(cls, arguments: argparse.Namespace, answers: Mapping[str, Any]) -> Settings:
        """Settings from parsed `SERVER_FLAGS` (and `POLLING_FLAGS`) and the answer options."""
        names = set(cls.__dataclass_fields__) & set(vars(arguments))
        return cls(
            **{
                **{name: getattr(arguments, name) for name in names},
                "request_timeout": arguments.request_timeout or None,
                "logs_requests": arguments.log_requests,
                "defaults": {name: value for name, value in answers.items() if value is not None and name != "system"},
                "system": answers["system"],
            }
        )
