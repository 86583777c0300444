"""A bound socket before there is a server, and its address as text."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket

from chatglm.errors import ChatGLMError


def bind(host: str, port: int) -> socket.socket:
    """A bound socket that does not listen yet; raises ChatGLMError if the address is not available."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ChatGLMError(f"There is no address {host!r}: {error.strerror}.", "Give another --host.") from None
    bound = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":  # on Windows the option lets two servers share a port
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            raise ChatGLMError(f"Port {port} on {host} is in use.", "Give another one with --port.") from None
        raise ChatGLMError(
            f"Cannot listen on {host}:{port}: {error.strerror}.", "Give another --host or --port."
        ) from None
    return bound


def url(bound: socket.socket) -> str:
    """The address for clients on this machine."""
    host, port = bound.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}"


def is_loopback(host: str) -> bool:
    """Whether an address, or a name, reaches this machine only."""
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def is_public(bound: socket.socket) -> bool:
    """Whether other machines can reach it."""
    return not is_loopback(bound.getsockname()[0])
