"""The FastAPI application, with documentation that works offline.

request -> count -> CORS -> authentication -> body limit -> strict JSON -> schema -> route -> service -> engine
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from chatglm.cli.settings import MAX_BODY_BYTES
from chatglm.errors import ChatGLMError
from chatglm.serving.http_errors import OPENAI_PREFIX, ErrorKind, ErrorResponse, router_message
from chatglm.serving.middleware import Authentication, BodyLimit, RequestCounter, error_response
from chatglm.serving.openai.openai_routes import openai_router
from chatglm.serving.routes import status_router, stream_router, upstream_router
from chatglm.serving.schemas import ErrorDetail, describe
from chatglm.serving.service import RequestService

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorDetail} for status in (400, 401, 413, 415, 422, 429, 500, 503, 504)
}
DESCRIPTION = "One model, several ways to ask it. `POST /` is that of upstream's api.py."


def create_app(service: RequestService, print_line: Callable[[str], object] = lambda line: None) -> FastAPI:
    """The application of a service; `print_line` gets upstream's line about every answer of `POST /`."""
    app = FastAPIOffline(title="ChatGLM-6B", description=DESCRIPTION, version="2")
    _add_error_handlers(app)
    app.include_router(upstream_router(service, print_line), responses=ERRORS)
    app.include_router(stream_router(service), responses=ERRORS)
    app.include_router(openai_router(service))
    app.include_router(status_router(service))
    _add_middleware(app, service)
    return app


def _add_middleware(app: FastAPI, service: RequestService) -> None:
    """The last one added is the first a request meets."""
    settings = service.settings
    paths = frozenset(app.openapi()["paths"])
    app.add_middleware(BodyLimit, limit=MAX_BODY_BYTES)
    if settings.api_key is not None:
        app.add_middleware(Authentication, service=service)
    if settings.cors:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(settings.cors), allow_methods=["GET", "POST"], allow_headers=["*"]
        )
    app.add_middleware(RequestCounter, counter=service.metrics.requests, paths=paths)


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(ChatGLMError)
    @app.exception_handler(Exception)
    async def on_error(request: Request, error: Exception) -> JSONResponse:
        return error_response(error, request.url.path)

    @app.exception_handler(RequestValidationError)
    async def on_invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        # FastAPI's locations begin with "body", "path" or the like.
        described = describe({**each, "loc": each["loc"][1:]} for each in error.errors())
        return error_response(described, request.url.path)

    @app.exception_handler(HTTPException)
    async def on_http(request: Request, error: HTTPException) -> JSONResponse:
        path = request.url.path
        message = router_message(error.status_code, request.method, path, str(error.detail))
        response = ErrorResponse(ErrorKind(error.status_code, "invalid_request_error"), message)
        body = response.openai_body if path.startswith(OPENAI_PREFIX) else {"detail": message}
        return JSONResponse(body, error.status_code, error.headers)
