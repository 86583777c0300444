"""The FastAPI application: the doors, what stands in front of them, and its documentation, which works offline.

Knows: which parts there are and in which order. Does not know what they do.

    request -> count -> CORS -> API key -> body limit -> strict JSON -> schema -> door -> desk -> engine
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel
from starlette.middleware.cors import CORSMiddleware

from chatglm.cli.settings import MAX_BODY_BYTES
from chatglm.serving import openai_door, sse_door, status_door, upstream_door
from chatglm.serving.access import RequireKey
from chatglm.serving.body_limit import BodyLimit
from chatglm.serving.counting import CountRequests
from chatglm.serving.desk import RequestService
from chatglm.serving.refusals import add_handlers


class Problem(BaseModel):
    """Every error outside of /v1: one sentence."""

    detail: str


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem} for status in (400, 401, 413, 415, 422, 429, 500, 503, 504)
}
DESCRIPTION = "One model, several ways to ask it. `POST /` is that of upstream's api.py."


def create_app(desk: RequestService, print_line: Callable[[str], object] = lambda line: None) -> FastAPI:
    """An application on a desk.

    Args:
        desk: takes the requests.
        print_line: gets upstream's line about every answer of `POST /`.
    """
    app = FastAPIOffline(title="ChatGLM-6B", description=DESCRIPTION, version="2")
    add_handlers(app)
    app.include_router(upstream_door.make_router(desk, print_line), responses=ERRORS)
    app.include_router(sse_door.make_router(desk), responses=ERRORS)
    app.include_router(openai_door.make_router(desk))
    app.include_router(status_door.make_router(desk))
    _add_middleware(app, desk)
    return app


def _add_middleware(app: FastAPI, desk: RequestService) -> None:
    """The last one added is the first a request meets."""
    settings = desk.settings
    paths = frozenset(app.openapi()["paths"])
    app.add_middleware(BodyLimit, limit=MAX_BODY_BYTES)
    if settings.api_key is not None:
        app.add_middleware(RequireKey, key=settings.api_key)
    if settings.cors:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
        )
    app.add_middleware(CountRequests, counter=desk.metrics.requests, paths=paths)
