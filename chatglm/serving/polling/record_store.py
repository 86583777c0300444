"""The records that clients poll, with their ids, limits and ages. Thread-safe.

accepted                running                    finished                     gone
is_handled False  --->  is_handled True      --->  is_finished True       --->  after `ttl` seconds, or when there
response ""             response grows             response stays               are more than `max_records`
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any


class PollingCode(IntEnum):
    """Upstream's codes."""

    OK = 0
    BUSY = 100
    EXISTS = 101
    UNKNOWN = 102


@dataclass
class PollingRecord:
    """One question and its answer so far."""

    timestamp: float  # when it was accepted, in seconds since 1970
    response: str = ""  # all text until now
    is_handled: bool = False  # whether a thread works on it or has done so
    is_finished: bool = False  # whether the response will not change any more
    error: str = ""  # why the answer is not complete; "" if it is

    def as_json(self) -> dict[str, Any]:
        """Upstream's four fields, and `error` where there was one."""
        fields = {
            "is_finished": self.is_finished,
            "is_handled": self.is_handled,
            "response": self.response,
            "timestamp": self.timestamp,
        }
        return {**fields, "error": self.error} if self.error else fields


class RecordStore:
    """The records of one server, kept for `ttl` seconds after their end; `clock` gives seconds since 1970.

    At most `max_unfinished` run or wait. Beyond `max_records` the first finished goes first, an unfinished one never.
    """

    def __init__(
        self, max_unfinished: int, ttl: float, max_records: int, clock: Callable[[], float] = time.time
    ) -> None:
        self._max_unfinished = max_unfinished
        self._ttl = ttl
        self._max_records = max_records
        self._clock = clock
        self._lock = threading.Lock()
        self._unfinished: dict[str, PollingRecord] = {}
        self._finished: OrderedDict[str, tuple[PollingRecord, float]] = (
            OrderedDict()
        )  # with the time of its end, in order

    def accept(self, request_id: str) -> PollingCode:
        """Make a record for a new id. The limit is checked before the id, as upstream does."""
        with self._lock:
            self._forget_old()
            if len(self._unfinished) >= self._max_unfinished:
                return PollingCode.BUSY
            if request_id in self._unfinished or request_id in self._finished:
                return PollingCode.EXISTS
            self._unfinished[request_id] = PollingRecord(self._clock())
            return PollingCode.OK

    def reject(self, request_id: str) -> None:
        """Forget an accepted id whose request was rejected."""
        with self._lock:
            self._unfinished.pop(request_id, None)

    def handle(self, request_id: str) -> None:
        """A thread works on it."""
        with self._lock:
            if record := self._unfinished.get(request_id):
                record.is_handled = True

    def append(self, request_id: str, text: str) -> None:
        """Add text to the response."""
        with self._lock:
            if record := self._unfinished.get(request_id):
                record.response += text

    def finish(self, request_id: str, error: str = "") -> None:
        """The response is final and its slot free. Nothing happens if it was finished before."""
        with self._lock:
            record = self._unfinished.pop(request_id, None)
            if record is not None:
                record.is_finished, record.error = True, error
                self._finished[request_id] = (record, self._clock())
                self._forget_old()

    def read(self, request_id: str) -> dict[str, Any] | None:
        """The record as JSON; None if there is none."""
        with self._lock:
            self._forget_old()
            record = self._unfinished.get(request_id)
            if record is None and request_id in self._finished:
                record = self._finished[request_id][0]
            return None if record is None else record.as_json()

    @property
    def num_unfinished(self) -> int:
        """How many run or wait."""
        return len(self._unfinished)

    def __len__(self) -> int:
        return len(self._unfinished) + len(self._finished)

    def _forget_old(self) -> None:
        """Done at every access, so no thread has to wake up for it. The oldest come first."""
        now = self._clock()
        while self._finished:
            _, ended = next(iter(self._finished.values()))
            if now - ended < self._ttl and len(self) <= self._max_records:
                return
            self._finished.popitem(last=False)
