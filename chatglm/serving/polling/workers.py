"""The threads that copy answers into their records; every record is finished, whatever happens."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from chatglm.errors import QueueFullError
from chatglm.generation.deltas import fold
from chatglm.serving.http_errors import ErrorResponse, ShuttingDownError
from chatglm.serving.polling.record_store import PollingCode, RecordStore
from chatglm.serving.schemas import PollingChat
from chatglm.serving.service import CANCELLED, Answer, RequestService, require_complete

_POLL_S = 0.05
# Clients poll about once a second; the last answers stay readable for this long.
LAST_READS_SECONDS = 1.5


class PollingWorkers:
    """The pool and the records that it fills."""

    def __init__(self, service: RequestService) -> None:
        settings = service.settings
        self.records = RecordStore(
            settings.max_running + settings.max_waiting,
            settings.record_ttl,
            settings.max_records,
        )
        self._service = service
        self._pool = ThreadPoolExecutor(settings.max_running, thread_name_prefix="chatglm-polling")
        self._tasks: dict[str, tuple[Answer, Future[None]]] = {}

    def start(self, request: PollingChat) -> PollingCode:
        """Accept a request, or return the code that rejects it.

        Raises ShuttingDownError, or InvalidRequestError for one that cannot be answered; its id stays free.
        """
        if self._service.is_closed:
            raise ShuttingDownError("The server is shutting down.", "Try again when it is back.")
        code = self.records.accept(request.request_id)
        if code is not PollingCode.OK:
            return code
        try:
            answer = self._service.submit_pairs(request.query, request.history, **request.parameters())
        except QueueFullError:
            self.records.reject(request.request_id)
            return PollingCode.BUSY
        except BaseException:
            self.records.reject(request.request_id)
            raise
        future = self._pool.submit(self._work, request.request_id, answer)
        self._tasks[request.request_id] = (answer, future)
        future.add_done_callback(lambda _: self._tasks.pop(request.request_id, None))
        return code

    def cancel(self, request_id: str) -> PollingCode:
        """End an answer within one token; a finished one stays as it is."""
        if self.records.read(request_id) is None:
            return PollingCode.UNKNOWN
        if task := self._tasks.get(request_id):
            self._end(request_id, *task)
        return PollingCode.OK

    def drain(self, timeout: float, is_urgent: Callable[[], bool]) -> None:
        """Wait for unfinished requests up to `timeout` seconds or until it is urgent; then cancel them.

        Clients get a moment to read the last answers.
        """
        if not self.records.num_unfinished:
            self._pool.shutdown()
            return
        end = time.monotonic() + timeout
        while self.records.num_unfinished and time.monotonic() < end and not is_urgent():
            time.sleep(_POLL_S)
        for request_id, task in list(self._tasks.items()):
            self._end(request_id, *task)
        self._pool.shutdown()
        end = time.monotonic() + LAST_READS_SECONDS
        while not is_urgent() and time.monotonic() < end:
            time.sleep(_POLL_S)

    def _end(self, request_id: str, answer: Answer, future: Future[None]) -> None:
        answer.cancel()
        if future.cancel():  # no thread has started on it, so none will finish the record
            self.records.finish(request_id, CANCELLED)

    def _work(self, request_id: str, answer: Answer) -> None:
        self.records.handle(request_id)
        error = CANCELLED
        seen = []
        try:
            for delta in answer:
                seen.append(delta)
                self.records.append(request_id, delta.text)
            require_complete(fold(seen))
            error = ""
        except Exception as failure:
            error = ErrorResponse.of(failure).message
        finally:
            self.records.finish(request_id, error)
