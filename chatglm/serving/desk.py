"""The desk every HTTP door hands its requests to: admitted, refused, or turned away because the server is closing.

Knows: the defaults of this server, who is being answered now, and when to stop. Does not know HTTP or how answers are
made: that is `pipeline.submit`.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Sequence
from typing import Any

from chatglm.cli.settings import Settings
from chatglm.engine import Handle, Stats
from chatglm.messages import check_history, to_messages
from chatglm.pipeline import Pipeline
from chatglm.serving.answer import Answer
from chatglm.serving.errors import ShuttingDownError
from chatglm.serving.metrics import Metrics


class RequestService:
    """One per server.

    Attributes:
        pipeline: the model and its engine.
        settings: how this server is set up.
        metrics: what is counted.
    """

    def __init__(self, pipeline: Pipeline, settings: Settings, metrics: Metrics | None = None) -> None:
        self.pipeline = pipeline
        self.settings = settings
        self.metrics = metrics or Metrics(self.stats)
        self._lock = threading.Lock()
        self._is_closed = False
        self._cancels_all = False
        self._handles: weakref.WeakSet[Handle] = weakref.WeakSet()

    def submit(
        self,
        query: str,
        history: Sequence[Sequence[str]] | None = None,
        *,
        system: str | None = None,
        **parameters: Any,
    ) -> Answer:
        """Take a request; None among the parameters means the default of this server, then of the model.

        Raises:
            QueueFullError: as many run and wait as may.
            ShuttingDownError: the server takes nothing more.
            InvalidRequestError: the request cannot be answered.
        """
        self._require_open()
        given = {"system": system, **parameters}
        chosen = {**self.settings.defaults, **{name: value for name, value in given.items() if value is not None}}
        messages = to_messages(query, check_history(history), chosen.pop("system", None))
        handle = self.pipeline.submit(messages, deadline=self.settings.request_timeout, **chosen)
        with self._lock:
            self._handles.add(handle)
            if self._cancels_all:
                handle.cancel()
        return Answer(handle, self.metrics)

    async def asubmit(self, query: str, history: Sequence[Sequence[str]] | None = None, **parameters: Any) -> Answer:
        """`submit` for an event loop: turning a long prompt into tokens takes time, so a thread does it."""
        return await asyncio.to_thread(self.submit, query, history, **parameters)

    def stats(self) -> Stats:
        """The engine's figures of this moment."""
        return self.pipeline.engine.stats()

    @property
    def is_closed(self) -> bool:
        """Whether new requests are turned away."""
        return self._is_closed

    def close(self) -> None:
        """Take nothing more. What is being answered goes on."""
        self._is_closed = True

    def cancel_all(self) -> None:
        """End every answer within one token, those included that are being admitted at this moment."""
        with self._lock:
            self._cancels_all = True
            for handle in list(self._handles):
                handle.cancel()

    def _require_open(self) -> None:
        if self._is_closed:
            raise ShuttingDownError("The server is shutting down.", "Try again when it is back.")
