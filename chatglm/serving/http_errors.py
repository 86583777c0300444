"""The one table from error classes to HTTP, and the error responses of both servers, for any web framework."""

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

OPENAI_PREFIX = "/v1/"
INTERNAL_ERROR = "The server failed to answer; its log says why."


class InvalidBodyError(InvalidRequestError):
    """The body is not JSON in UTF-8."""


class InvalidFieldError(InvalidRequestError):
    """A field, given as `messages[0].content`, is missing or has a wrong value; "" means the body as a whole."""

    def __init__(self, problem: str, field: str = "") -> None:
        super().__init__(problem)
        self.field = field


class BodyTooLargeError(InvalidRequestError):
    """The body has more bytes than the server accepts."""


class BodyTimeoutError(InvalidRequestError):
    """The body did not arrive in time."""


class WrongContentTypeError(InvalidRequestError):
    """The header names a format other than JSON."""


class WrongKeyError(InvalidRequestError):
    """The server has an API key and the request does not carry it."""


class UnknownModelError(InvalidRequestError):
    """There is no model of that name here."""


class ShuttingDownError(ChatGLMError):
    """The server takes no new requests."""


class DeadlineError(ChatGLMError):
    """The answer took longer than a request may."""


class CancelledError(ChatGLMError):
    """The answer was ended before it was complete, because the server shuts down."""


@dataclass(frozen=True)
class ErrorKind:
    """An error class in HTTP."""

    status: int  # HTTP status
    type: str  # OpenAI's `error.type`
    code: str | None = None  # OpenAI's `error.code`
    # seconds after which trying again makes sense; None = the same request will fail again
    retry_after: int | None = None


# The first class that fits counts, so a class stands before those it derives from.
KINDS: tuple[tuple[type[Exception], ErrorKind], ...] = (
    (InvalidBodyError, ErrorKind(400, "invalid_request_error")),
    (InvalidFieldError, ErrorKind(422, "invalid_request_error")),
    (BodyTooLargeError, ErrorKind(413, "invalid_request_error")),
    (BodyTimeoutError, ErrorKind(408, "invalid_request_error")),
    (WrongContentTypeError, ErrorKind(415, "invalid_request_error")),
    (WrongKeyError, ErrorKind(401, "authentication_error", "invalid_api_key")),
    (UnknownModelError, ErrorKind(404, "invalid_request_error", "model_not_found")),
    (PromptTooLongError, ErrorKind(400, "invalid_request_error", "context_length_exceeded")),
    (InvalidRequestError, ErrorKind(400, "invalid_request_error")),
    (QueueFullError, ErrorKind(429, "rate_limit_error", "queue_full", retry_after=1)),
    (ShuttingDownError, ErrorKind(503, "server_error", "shutting_down", retry_after=10)),
    (CancelledError, ErrorKind(503, "server_error", "shutting_down", retry_after=10)),
    (OutOfMemoryError, ErrorKind(503, "server_error", "out_of_memory", retry_after=10)),
    (DeadlineError, ErrorKind(504, "server_error", "deadline_exceeded")),
    (InvalidLogitsError, ErrorKind(500, "server_error", "invalid_logits")),
    (ChatGLMError, ErrorKind(500, "server_error")),
    (Exception, ErrorKind(500, "server_error")),
)


@dataclass(frozen=True)
class ErrorResponse:
    """What a client gets instead of an answer."""

    kind: ErrorKind  # status and OpenAI's words
    message: str  # one sentence
    field: str = ""  # the request's field it is about; may be empty
    retry_after: int | None = None  # seconds, where the error knows better than its kind

    @classmethod
    def of(cls, error: Exception) -> ErrorResponse:
        """Only messages of a ChatGLMError leave the server; other errors are internal and go to the log."""
        kind = next(kind for class_, kind in KINDS if isinstance(error, class_))
        if not isinstance(error, ChatGLMError):
            logger.error("An answer failed.", exc_info=error)
            return cls(kind, INTERNAL_ERROR)
        field = error.field if isinstance(error, InvalidFieldError) else ""
        return cls(kind, str(error), field, getattr(error, "retry_after", None) or kind.retry_after)

    @property
    def headers(self) -> dict[str, str]:
        if self.kind.status == 401:
            return {"WWW-Authenticate": "Bearer"}
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}

    @property
    def openai_body(self) -> dict[str, object]:
        message = self.message
        if self.kind.code == "context_length_exceeded":  # the words by which clients recognise it
            message += " This model's maximum context length is exceeded."
        error = {"message": message, "type": self.kind.type, "param": self.field or None, "code": self.kind.code}
        return {"error": error}


def router_message(status: int, method: str, path: str, otherwise: str) -> str:
    """The message for an unknown path or method, or `otherwise`."""
    messages = {404: f"There is nothing at {path}.", 405: f"{method} is not possible at {path}."}
    return messages.get(status, otherwise)
