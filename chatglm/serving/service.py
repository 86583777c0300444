"""Requests in, deltas out: admission, defaults, authentication and draining, for any web framework."""

from __future__ import annotations

import asyncio
import hmac
import threading
import weakref
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import aclosing
from typing import Any

from chatglm.cli.settings import Settings
from chatglm.engine import Completion, Handle, Stats
from chatglm.errors import QueueFullError
from chatglm.generation.deltas import Delta
from chatglm.messages import Message, check_history, to_messages
from chatglm.pipeline import Pipeline
from chatglm.serving.http_errors import CancelledError, DeadlineError, ShuttingDownError, WrongKeyError
from chatglm.serving.prometheus import ServerMetrics

CANCELLED = "The answer was cancelled before it was complete."


class RequestService:
    """The requests of one server, its settings and its metrics."""

    def __init__(self, pipeline: Pipeline, settings: Settings) -> None:
        self.pipeline = pipeline
        self.settings = settings
        self.metrics = ServerMetrics(self.stats)
        self.is_closed = False
        self._lock = threading.Lock()
        self._cancels_all = False
        self._handles: weakref.WeakSet[Handle] = weakref.WeakSet()

    def submit(self, messages: Sequence[Message], **parameters: Any) -> Answer:
        """Take a chat request; the messages are oldest first, and get the server's system message if they have none.

        `parameters` are those of `Pipeline.submit`; None = the default of this server, then of the model. Raises
        QueueFullError, ShuttingDownError, or InvalidRequestError for a request that cannot be answered.
        """
        system = self.settings.system
        if system and all(message.role != "system" for message in messages):
            messages = [Message("system", system), *messages]
        return self._admit(self.pipeline.submit, messages, parameters)

    def submit_pairs(
        self, query: str, history: Sequence[Sequence[str]] | None, *, system: str | None = None, **parameters: Any
    ) -> Answer:
        """`submit` for upstream-shaped requests. An empty `system` switches the server's system message off."""
        messages = to_messages(query, check_history(history))
        return self.submit(messages if system is None else [Message("system", system), *messages], **parameters)

    def complete(self, prompt: str, **parameters: Any) -> Answer:
        """Take a request to continue raw text, without chat template or system message; as `submit`."""
        return self._admit(self.pipeline.complete, prompt, parameters)

    def _admit(self, submit: Any, prompt: str | Sequence[Message], parameters: dict[str, Any]) -> Answer:
        if self.is_closed:
            raise ShuttingDownError("The server is shutting down.", "Try again when it is back.")
        given = {name: value for name, value in parameters.items() if value is not None}
        try:
            handle = submit(prompt, deadline=self.settings.request_timeout, **{**self.settings.defaults, **given})
        except QueueFullError as error:
            stats = self.stats()
            error.retry_after = self.metrics.seconds_until_room(stats.running + stats.waiting)
            raise
        with self._lock:
            self._handles.add(handle)
            if self._cancels_all:
                handle.cancel()
        return Answer(handle, self.metrics)

    def stats(self) -> Stats:
        return self.pipeline.engine.stats()

    def authenticate(self, authorization: str | None) -> None:
        """Raise WrongKeyError unless the Authorization header is `Bearer KEY`; compared in constant time."""
        key = self.settings.api_key
        scheme, _, given = (authorization or "").partition(" ")
        if key is not None and not (
            scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), key.encode())
        ):
            raise WrongKeyError("The API key is missing or wrong.", "Send Authorization: Bearer KEY.")

    def close(self) -> None:
        """Take no new requests. Running answers go on."""
        self.is_closed = True

    def cancel_all(self) -> None:
        """End every answer within one token, those included that are being admitted at this moment."""
        with self._lock:
            self._cancels_all = True
            for handle in list(self._handles):
                handle.cancel()


class Answer:
    """The deltas of one request; a failed one raises after its last. Iterate once; leaving the iteration cancels it."""

    def __init__(self, handle: Handle, metrics: ServerMetrics) -> None:
        self._handle = handle
        self._timer = metrics.start_answer()

    def __iter__(self) -> Generator[Delta, None, None]:
        try:
            for delta in self._handle:
                self._timer.count(delta)
                yield delta
        finally:
            self.cancel()

    async def __aiter__(self) -> AsyncGenerator[Delta, None]:
        try:
            async for delta in self._handle:
                self._timer.count(delta)
                yield delta
        finally:
            self.cancel()

    def cancel(self) -> None:
        self._handle.cancel()
        self._timer.stop("cancelled")


def require_complete(completion: Completion) -> Completion:
    """Raise DeadlineError or CancelledError for an answer ended by neither the model nor a limit of the request."""
    if completion.finish_reason == "deadline":
        raise DeadlineError("The answer took longer than this server allows.", "Ask for fewer tokens.")
    if completion.finish_reason == "cancelled":
        raise CancelledError(CANCELLED)
    return completion


async def merge(answers: Sequence[Answer]) -> AsyncGenerator[tuple[int, Delta], None]:
    """The deltas of several answers as they come, with the answer's index; an error, or leaving early, ends all."""
    queue: asyncio.Queue[tuple[int, Delta] | Exception | None] = asyncio.Queue()

    async def forward(index: int, answer: Answer) -> None:
        try:
            async with aclosing(aiter(answer)) as deltas:
                async for delta in deltas:
                    queue.put_nowait((index, delta))
        except Exception as error:
            queue.put_nowait(error)
        else:
            queue.put_nowait(None)

    tasks = [asyncio.create_task(forward(index, answer)) for index, answer in enumerate(answers)]
    num_unfinished = len(tasks)
    try:
        while num_unfinished:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                num_unfinished -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        for answer in answers:
            answer.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
