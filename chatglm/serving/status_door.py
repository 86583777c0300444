"""`GET /health` and `GET /metrics`: how the server is, without asking the model.

Knows: the two answers. Does not know what the figures mean.
"""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from chatglm.serving.desk import RequestService
from chatglm.serving.metrics import CONTENT_TYPE


class Health(BaseModel):
    """How the server is."""

    status: Literal["ok", "shutting down"]
    model: str
    running: int
    waiting: int


def make_router(desk: RequestService) -> APIRouter:
    """Both routes."""
    router = APIRouter(tags=["status"])

    @router.get("/health", summary="Whether requests are taken", responses={503: {"model": Health}})
    async def health() -> Response:
        stats = desk.stats()
        status: Literal["ok", "shutting down"] = "shutting down" if desk.is_closed else "ok"
        body = Health(status=status, model=desk.pipeline.name, running=stats.running, waiting=stats.waiting)
        return JSONResponse(body.model_dump(), 503 if desk.is_closed else 200)

    @router.get("/metrics", summary="Figures for Prometheus", response_class=Response, responses=METRICS)
    async def metrics() -> Response:
        return Response(desk.metrics.render(), media_type=CONTENT_TYPE)

    return router


METRICS: dict[int | str, dict[str, object]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}
