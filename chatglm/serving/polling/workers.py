"""The threads that answer: ten run, twenty wait in the executor's queue, the next one is told that we are busy.

Knows: how an answer gets into its record, and that every record is finished whatever happens. Does not know HTTP.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from chatglm.errors import QueueFullError
from chatglm.serving.answer import CANCELLED, Answer, Whole
from chatglm.serving.desk import RequestService
from chatglm.serving.errors import ShuttingDownError, refuse
from chatglm.serving.polling.records import Code, Records
from chatglm.serving.polling.requests import PollingChat

_LOOK_EVERY_S = 0.05


class Workers:
    """The pool and its records.

    Attributes:
        records: what clients poll.
    """

    def __init__(self, desk: RequestService) -> None:
        settings = desk.settings
        self.records = Records(
            settings.max_running + settings.max_waiting,
            settings.record_ttl,
            settings.max_records,
        )
        self._desk = desk
        self._pool = ThreadPoolExecutor(settings.max_running, thread_name_prefix="chatglm-polling")
        self._tasks: dict[str, tuple[Answer, Future[None]]] = {}

    def start(self, request: PollingChat) -> Code:
        """Take a question, or say why not.

        Raises:
            ShuttingDownError: the server takes nothing more.
            InvalidRequestError: it cannot be answered; the id is as free as before.
        """
        if self._desk.is_closed:
            raise ShuttingDownError("The server is shutting down.", "Try again when it is back.")
        code = self.records.accept(request.request_id)
        if code is not Code.OK:
            return code
        try:
            answer = self._desk.submit(request.query, request.history, **request.parameters())
        except QueueFullError:
            self.records.reject(request.request_id)
            return Code.BUSY
        except BaseException:
            self.records.reject(request.request_id)
            raise
        future = self._pool.submit(self._work, request.request_id, answer)
        self._tasks[request.request_id] = (answer, future)
        future.add_done_callback(lambda _: self._tasks.pop(request.request_id, None))
        return code

    def cancel(self, request_id: str) -> Code:
        """End an answer within one token; one that has ended stays as it is."""
        if self.records.read(request_id) is None:
            return Code.UNKNOWN
        if task := self._tasks.get(request_id):
            self._end(request_id, *task)
        return Code.OK

    def render_metrics(self) -> bytes:
        """Figures of the server in Prometheus' text format."""
        return self._desk.metrics.render()

    def drain(self, timeout: float, is_urgent: Callable[[], bool]) -> None:
        """Let what runs and waits go on for some seconds, or until it is urgent; cancel the rest, wait for threads."""
        end = time.monotonic() + timeout
        while self.records.num_unfinished and time.monotonic() < end and not is_urgent():
            time.sleep(_LOOK_EVERY_S)
        for request_id, task in list(self._tasks.items()):
            self._end(request_id, *task)
        self._pool.shutdown()

    def _end(self, request_id: str, answer: Answer, future: Future[None]) -> None:
        answer.cancel()
        if future.cancel():  # no thread had taken it up, so none will finish the record
            self.records.finish(request_id, CANCELLED)

    def _work(self, request_id: str, answer: Answer) -> None:
        self.records.handle(request_id)
        whole = Whole()
        error = CANCELLED
        try:
            for delta in answer:
                whole.add(delta)
                self.records.append(request_id, delta.text)
            whole.require_complete()
            error = ""
        except Exception as failure:
            error = refuse(failure).sentence
        finally:
            self.records.finish(request_id, error)
