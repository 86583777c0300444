"""The one table from error classes to HTTP: status, and OpenAI's words for the kind of error.

Knows: classes and statuses. Does not know frameworks: each door gives a `Refusal` the form its clients expect.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from chatglm.errors import (
    ChatGLMError,
    InvalidLogitsError,
    InvalidRequestError,
    OutOfMemoryError,
    PromptTooLongError,
    QueueFullError,
)

logger = logging.getLogger(__name__)

SERVER_SENTENCE = "The server failed to answer; its log says why."


class InvalidBodyError(InvalidRequestError):
    """The body is not JSON in UTF-8."""


class InvalidFieldError(InvalidRequestError):
    """The body is JSON, but a field is missing or has a wrong value.

    Args:
        problem: one sentence.
        field: the field it is about, as `messages[0].content`; empty for the body as a whole.
    """

    def __init__(self, problem: str, field: str = "") -> None:
        super().__init__(problem)
        self.field = field


class BodyTooLargeError(InvalidRequestError):
    """More bytes than a body may have."""


class WrongContentTypeError(InvalidRequestError):
    """The header names a format that is not read here."""


class WrongKeyError(InvalidRequestError):
    """The server has an API key and the request does not carry it."""


class UnknownModelError(InvalidRequestError):
    """There is no model of that name here."""


class ShuttingDownError(ChatGLMError):
    """The server is about to end and takes nothing more."""


class DeadlineError(ChatGLMError):
    """The answer took longer than a request may."""


class CancelledError(ChatGLMError):
    """The answer was ended before it was complete, by the server that shuts down."""


@dataclass(frozen=True)
class Row:
    """What an error class is in HTTP.

    Attributes:
        status: HTTP status.
        type: OpenAI's `error.type`.
        code: OpenAI's `error.code`.
        retry_after: seconds after which trying again makes sense; None = the same request will fail again.
    """

    status: int
    type: str
    code: str | None = None
    retry_after: int | None = None


# The first row whose class fits counts, so a class stands before those it derives from.
TABLE: tuple[tuple[type[Exception], Row], ...] = (
    (InvalidBodyError, Row(400, "invalid_request_error")),
    (InvalidFieldError, Row(422, "invalid_request_error")),
    (BodyTooLargeError, Row(413, "invalid_request_error")),
    (WrongContentTypeError, Row(415, "invalid_request_error")),
    (WrongKeyError, Row(401, "authentication_error", "invalid_api_key")),
    (UnknownModelError, Row(404, "invalid_request_error", "model_not_found")),
    (PromptTooLongError, Row(400, "invalid_request_error", "context_length_exceeded")),
    (InvalidRequestError, Row(400, "invalid_request_error")),
    (QueueFullError, Row(429, "rate_limit_error", "queue_full", retry_after=1)),
    (ShuttingDownError, Row(503, "server_error", "shutting_down", retry_after=10)),
    (CancelledError, Row(503, "server_error", "shutting_down", retry_after=10)),
    (OutOfMemoryError, Row(503, "server_error", "out_of_memory", retry_after=10)),
    (DeadlineError, Row(504, "server_error", "deadline_exceeded")),
    (InvalidLogitsError, Row(500, "server_error", "invalid_logits")),
    (ChatGLMError, Row(500, "server_error")),
    (Exception, Row(500, "server_error")),
)


@dataclass(frozen=True)
class Refusal:
    """A request that gets no answer: the row of its error, one sentence, and the field it is about."""

    row: Row
    sentence: str
    field: str = ""

    @classmethod
    def of(cls, error: Exception) -> Refusal:
        """What to tell a client. Only sentences written for people leave the server; others stay in its log."""
        row = next(row for kind, row in TABLE if isinstance(error, kind))
        if not isinstance(error, ChatGLMError):
            return cls(row, SERVER_SENTENCE)
        return cls(row, str(error), error.field if isinstance(error, InvalidFieldError) else "")

    @property
    def headers(self) -> dict[str, str]:
        """Headers that go with the status."""
        if self.row.status == 401:
            return {"WWW-Authenticate": "Bearer"}
        return {} if self.row.retry_after is None else {"Retry-After": str(self.row.retry_after)}

    def openai_body(self) -> dict[str, object]:
        """The error as OpenAI's clients read it."""
        error = {"message": self.sentence, "type": self.row.type, "param": self.field or None, "code": self.row.code}
        return {"error": error}


def refuse(error: Exception) -> Refusal:
    """`Refusal.of`, and a line with the traceback in the log if the error is a defect of ours."""
    if not isinstance(error, ChatGLMError):
        logger.error("An answer failed.", exc_info=error)
    return Refusal.of(error)
