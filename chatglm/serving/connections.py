"""Connections of the HTTP server: none is silent, or half sent, for long, and there are never too many."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

# Files that the process opens beside its connections, and connections that were accepted but not yet counted.
OWN_FILES = 64
BACKLOG = 128
_TOO_MANY = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
# An interim response, which clients skip: whoever has gone resets the connection, whoever listens does not.
_PROBE = b"HTTP/1.1 102 Processing\r\n\r\n"
_PROBE_SECONDS = (0.05, 0.5, 2.0)


def connection_bounds(wanted: int) -> tuple[int, int]:
    """Connections at once, at most `wanted`, and how many more may be accepted at a time: the limit of open files
    leaves room for both, for as many again that are being closed, and for the files of the process.
    """
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return wanted, BACKLOG
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return wanted, BACKLOG
    backlog = max(1, min(BACKLOG, limit // 8))
    return max(1, min(wanted, limit - 3 * backlog - OWN_FILES)), backlog


def connection_class(max_connections: int, header_timeout: float) -> type[H11Protocol]:
    """uvicorn's protocol with bounds: connections at once, and seconds until the headers of a request are complete."""

    class BoundedConnection(H11Protocol):
        _header_timer: asyncio.TimerHandle | None = None
        _is_half_closed = False

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > max_connections:
                transport.write(_TOO_MANY)
                transport.close()
            else:
                self._await_headers()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is not None and not self.cycle.response_complete:
                self._stop_timer()
            else:
                self._await_headers()

        def eof_received(self) -> bool | None:  # type: ignore[override]
            """A client that has only finished sending gets its response; one that has left ends it."""
            if self.cycle is None or self.cycle.response_complete or self.cycle.more_body:
                return None
            self._is_half_closed = True
            if self.conn.our_state is h11.SEND_RESPONSE and self.conn.their_http_version == b"1.1":
                self.transport.write(_PROBE)
            for seconds in _PROBE_SECONDS:
                self.loop.call_later(seconds, self._end_if_reset)
            return True

        def on_response_complete(self) -> None:
            is_whole = self.cycle is not None and not self.cycle.more_body
            super().on_response_complete()
            if self._is_half_closed:
                self.transport.close()
            elif not is_whole or self.conn.trailing_data[0]:
                # The rest of a refused request is read: to close before would reset the connection, response and all.
                self._await_headers()

        def shutdown(self) -> None:
            """A request that is still being sent will not be answered."""
            if self.cycle is not None and not self.cycle.response_complete and self.cycle.more_body:
                self.transport.abort()
            else:
                super().shutdown()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_timer()
            super().connection_lost(exc)

        def _await_headers(self) -> None:
            if self._header_timer is None and not self.transport.is_closing():
                self._header_timer = self.loop.call_later(header_timeout, self.transport.abort)

        def _stop_timer(self) -> None:
            if self._header_timer is not None:
                self._header_timer.cancel()
                self._header_timer = None

        def _end_if_reset(self) -> None:
            connection: Any = self.transport.get_extra_info("socket")
            if not self.transport.is_closing() and connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self.transport.abort()

    return BoundedConnection
