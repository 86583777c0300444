"""What a request passes before its route: counting, authentication, the body limit, strict JSON; and disconnects."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, MutableMapping
from contextlib import asynccontextmanager, suppress
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from prometheus_client import Counter
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chatglm.errors import ChatGLMError, InvalidRequestError
from chatglm.serving.http_errors import (
    OPENAI_PREFIX,
    BodyTimeoutError,
    BodyTooLargeError,
    ErrorResponse,
    InvalidBodyError,
    WrongContentTypeError,
    WrongKeyError,
)
from chatglm.serving.schemas import check_content_type, parse_json
from chatglm.serving.service import RequestService

# The documentation holds no secret, and a browser cannot be told to send a key for it.
OPEN_PATHS = ("/health", "/docs", "/redoc", "/openapi.json", "/static-offline-docs/")
# So many times the limit is read and discarded of a body that is too long, so that its sender reads the response.
DISCARD_FACTOR = 8
CLIENT_LEFT = "499"  # the status counted for a client that did not wait for its response, as nginx has it
_BODY_ERROR = "chatglm.body_error"  # in the ASGI scope


# Makes a response of an error at a path; each application has one, in `app.state.error_shape`.
ErrorShape = Callable[[ErrorResponse, str], JSONResponse]


def http_error(error: ErrorResponse, path: str) -> JSONResponse:
    """OpenAI's shape below /v1, `{"detail": ...}` elsewhere."""
    status = error.kind.status
    if not path.startswith(OPENAI_PREFIX):
        return JSONResponse({"detail": error.message}, status, error.headers)
    # OpenAI's own server has no 422.
    return JSONResponse(error.openai_body, 400 if status == 422 else status, error.headers)


def error_response(error: Exception, scope: Scope) -> JSONResponse:
    """An error as a response of the application that the request is for."""
    shape: ErrorShape = scope["app"].state.error_shape
    return shape(ErrorResponse.of(error), scope["path"])


class RequestCounter:
    """ASGI middleware: counts responses by path and status; unknown paths as "other", or they could fill memory."""

    def __init__(self, app: ASGIApp, counter: Counter, paths: frozenset[str]) -> None:
        self._app, self._counter, self._paths = app, counter, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_left = False

        async def watch() -> Message:
            nonlocal has_left
            message = await receive()
            has_left = has_left or message["type"] == "http.disconnect"
            return message

        async def count(message: Message) -> None:
            if message["type"] == "http.response.start":
                path = scope["path"] if scope["path"] in self._paths else "other"
                self._counter.labels(path, CLIENT_LEFT if has_left else str(message["status"])).inc()
            await send(message)

        await self._app(scope, watch, count)


class Authentication:
    """ASGI middleware: 401 without the API key, except for `OPEN_PATHS`."""

    def __init__(self, app: ASGIApp, service: RequestService) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._is_open(scope["path"]):
            try:
                self._service.authenticate(Headers(scope=scope).get("authorization"))
            except WrongKeyError as error:
                await error_response(error, scope)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    @staticmethod
    def _is_open(path: str) -> bool:
        return any(path == each or (each.endswith("/") and path.startswith(each)) for each in OPEN_PATHS)


class BodyLimit:
    """ASGI middleware: 413 for bodies of more than `limit` bytes, announced or not, 408 after `timeout` seconds."""

    def __init__(self, app: ASGIApp, limit: int, timeout: float) -> None:
        self._app, self._limit, self._timeout = app, limit, timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            _check_encoding(Headers(scope=scope).get("content-encoding", ""))
            async with asyncio.timeout(self._timeout):
                body = await self._read(receive)
        except TimeoutError:
            error = BodyTimeoutError(f"The body did not arrive within {self._timeout:g} seconds.")
            await error_response(error, scope)(scope, receive, send)
            return
        except InvalidRequestError as error:
            await error_response(error, scope)(scope, receive, send)
            return
        pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return pending.pop() if pending else await receive()

        await self._app(scope, replay, send)

    async def _read(self, receive: Receive) -> bytes:
        """The whole body. If the client disconnects, what it has sent until then. Raises BodyTooLargeError."""
        body = bytearray()
        num_bytes = 0
        while num_bytes <= self._limit * DISCARD_FACTOR:
            message = await receive()
            if message["type"] != "http.request":
                break
            num_bytes += len(message.get("body", b""))
            if num_bytes <= self._limit:
                body += message.get("body", b"")
            if not message.get("more_body", False):
                break
        if num_bytes > self._limit:
            raise BodyTooLargeError(f"The body is longer than {self._limit // 1024**2} MB.")
        return bytes(body)


def _check_encoding(encoding: str) -> None:
    if encoding.strip().lower() not in ("", "identity"):
        raise WrongContentTypeError(
            f"The body is encoded as {encoding[:100]!r}.", "Send it as it is, without Content-Encoding."
        )


class StrictJsonRequest(Request):
    """A request whose JSON is read by `parse_json`."""

    async def json(self) -> Any:
        try:
            return parse_json(await self.body())
        except (InvalidBodyError, BodyTooLargeError) as error:
            # FastAPI replaces every error of reading by its own; this one is kept where the route finds it.
            self.scope[_BODY_ERROR] = error
            raise


class StrictJsonRoute(APIRoute):
    """A route with a strict JSON body: see `schemas.parse_json`."""

    forgives_content_type = False

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def read_and_handle(request: Request) -> Response:
            if self.body_field is None:
                return await handle(request)
            check_content_type(request.headers.get("content-type"), self.forgives_content_type)
            request = StrictJsonRequest(_as_json(request.scope), request.receive)
            try:
                return await handle(request)
            except Exception as error:
                if _BODY_ERROR in request.scope:
                    raise request.scope[_BODY_ERROR] from None
                if isinstance(error, (ChatGLMError, HTTPException, RequestValidationError)):
                    raise
                # Starlette would answer an internal error too, but close the connection.
                return error_response(error, request.scope)

        return read_and_handle


class ForgivingJsonRoute(StrictJsonRoute):
    """Also accepts clients that forget the content type, as upstream does."""

    forgives_content_type = True


def _as_json(scope: MutableMapping[str, Any]) -> dict[str, Any]:
    """The scope with a content type that FastAPI reads as JSON, whatever it was."""
    headers = [(name, value) for name, value in scope["headers"] if name != b"content-type"]
    return {**scope, "headers": [*headers, (b"content-type", b"application/json")]}


@asynccontextmanager
async def on_disconnect(request: Request, action: Callable[[], None]) -> AsyncIterator[None]:
    """Inside the block, call `action` when the client disconnects. The body must have been read."""

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        action()

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()
        with suppress(asyncio.CancelledError):
            await watcher
