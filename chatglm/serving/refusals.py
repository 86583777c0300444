"""A `Refusal` as an HTTP response of the FastAPI door: OpenAI's shape below /v1, `{"detail": ...}` elsewhere.

Knows: paths and the two shapes. Does not know which error is which status: `errors.TABLE`.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from chatglm.errors import ChatGLMError
from chatglm.serving.bodies import describe
from chatglm.serving.errors import InvalidFieldError, refuse

OPENAI_PREFIX = "/v1/"


def respond(error: Exception, path: str) -> JSONResponse:
    """What a client of `path` gets to see of an error."""
    refusal = refuse(error)
    if not path.startswith(OPENAI_PREFIX):
        return JSONResponse({"detail": refusal.sentence}, refusal.row.status, refusal.headers)
    # OpenAI's own server has no 422.
    status = 400 if refusal.row.status == 422 else refusal.row.status
    return JSONResponse(refusal.openai_body(), status, refusal.headers)


def add_handlers(app: FastAPI) -> None:
    """Give every error of the application its response."""

    @app.exception_handler(ChatGLMError)
    @app.exception_handler(Exception)
    async def on_error(request: Request, error: Exception) -> JSONResponse:
        return respond(error, request.url.path)

    @app.exception_handler(RequestValidationError)
    async def on_invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return respond(_of_validation(error), request.url.path)

    @app.exception_handler(HTTPException)
    async def on_http(request: Request, error: HTTPException) -> JSONResponse:
        return _of_http(request, error)


def _of_validation(error: RequestValidationError) -> InvalidFieldError:
    """FastAPI's error list; its places begin with "body", "path" or the like."""
    return describe({**each, "loc": each["loc"][1:]} for each in error.errors())


def _of_http(request: Request, error: HTTPException) -> JSONResponse:
    """Errors of the router: unknown paths and methods."""
    sentence = {
        404: f"There is nothing at {request.url.path}.",
        405: f"{request.method} is not possible at {request.url.path}.",
    }.get(error.status_code, str(error.detail))
    body: dict[str, Any] = {"detail": sentence}
    if request.url.path.startswith(OPENAI_PREFIX):
        body = {"error": {"message": sentence, "type": "invalid_request_error", "param": None, "code": None}}
    return JSONResponse(body, error.status_code, error.headers)
