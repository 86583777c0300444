"""The FastAPI applications of both servers, with documentation that works offline.

request -> count -> CORS -> local access -> authentication -> body limit -> strict JSON -> schema -> route -> engine
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from chatglm.cli.local_access import LocalAccess
from chatglm.cli.settings import MAX_BODY_BYTES
from chatglm.errors import ChatGLMError
from chatglm.serving.http_errors import ErrorKind, ErrorResponse, router_message
from chatglm.serving.middleware import Authentication, BodyLimit, ErrorShape, RequestCounter, error_response, http_error
from chatglm.serving.openai.openai_routes import openai_router
from chatglm.serving.polling.polling_routes import polling_error, polling_router
from chatglm.serving.polling.workers import PollingWorkers
from chatglm.serving.routes import status_router, stream_router, upstream_router
from chatglm.serving.schemas import ErrorDetail, describe
from chatglm.serving.service import RequestService

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorDetail} for status in (400, 401, 413, 415, 422, 429, 500, 503, 504)
}
DESCRIPTION = "One model, several ways to ask it. `POST /` is that of upstream's api.py."
POLLING_DESCRIPTION = "Upstream's stream_api.py: `POST /chat` asks, `POST /get_response` reads the answer so far."


def create_app(service: RequestService, print_line: Callable[[str], object] = lambda line: None) -> FastAPI:
    """The application of api.py; `print_line` gets upstream's line about every answer of `POST /`."""
    answering = (upstream_router(service, print_line), stream_router(service))
    app = _application(DESCRIPTION, [openai_router(service), status_router(service)], answering, http_error)
    _add_middleware(app, service)
    return app


def create_polling_app(service: RequestService, workers: PollingWorkers) -> FastAPI:
    """The application of stream_api.py."""
    app = _application(POLLING_DESCRIPTION, [polling_router(workers), status_router(service)], (), polling_error)
    _add_middleware(app, service)
    return app


def _application(
    description: str, routers: Sequence[APIRouter], answering: Sequence[APIRouter], shape: ErrorShape
) -> FastAPI:
    app = FastAPIOffline(title="ChatGLM-6B", description=description, version="2")
    app.state.error_shape = shape
    _add_error_handlers(app)
    for router in answering:
        app.include_router(router, responses=ERRORS)
    for router in routers:
        app.include_router(router)
    return app


def _add_middleware(app: FastAPI, service: RequestService) -> None:
    """The last one added is the first a request meets."""
    settings = service.settings
    paths = frozenset(app.openapi()["paths"])
    app.add_middleware(BodyLimit, limit=MAX_BODY_BYTES, timeout=settings.body_timeout)
    if settings.api_key is not None:
        app.add_middleware(Authentication, service=service)
    elif settings.is_local:
        app.add_middleware(LocalAccess, hosts=settings.allowed_hosts, origins=settings.cors)
    if settings.cors:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(settings.cors), allow_methods=["GET", "POST"], allow_headers=["*"]
        )
    app.add_middleware(RequestCounter, counter=service.metrics.requests, paths=paths)


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(ChatGLMError)
    @app.exception_handler(Exception)
    async def on_error(request: Request, error: Exception) -> JSONResponse:
        return error_response(error, request.scope)

    @app.exception_handler(RequestValidationError)
    async def on_invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        # FastAPI's locations begin with "body", "path" or the like.
        described = describe({**each, "loc": each["loc"][1:]} for each in error.errors())
        return error_response(described, request.scope)

    @app.exception_handler(HTTPException)
    async def on_http(request: Request, error: HTTPException) -> JSONResponse:
        message = router_message(error.status_code, request.method, request.url.path, str(error.detail))
        kind = ErrorKind(error.status_code, "invalid_request_error")
        response = app.state.error_shape(ErrorResponse(kind, message), request.url.path)
        response.headers.update(error.headers or {})
        return response
