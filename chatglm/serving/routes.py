"""`POST /` as upstream's api.py has it, `POST /stream` as Server-Sent Events, `GET /health`, `GET /metrics`.

event: delta     data: {"delta": "你好"}                        as often as there is new text
event: done      data: {"response": ..., "history": ..., "finish_reason": "stop", "usage": {...}, ...}
event: error     data: {"detail": "..."}                        instead of `done`, when the answer failed
: heartbeat                                                     after some seconds of silence
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request, Response
from fastapi.responses import JSONResponse
from sse_starlette import EventSourceResponse, JSONServerSentEvent, ServerSentEvent

from chatglm.cli.settings import Settings
from chatglm.generation.deltas import fold
from chatglm.serving.http_errors import ErrorResponse
from chatglm.serving.middleware import ForgivingJsonRoute, StrictJsonRoute, on_disconnect
from chatglm.serving.prometheus import CONTENT_TYPE
from chatglm.serving.request_log import answer_line
from chatglm.serving.schemas import Health, StreamRequest, UpstreamRequest, UpstreamResponse
from chatglm.serving.service import Answer, RequestService, require_complete

TIME_FORMAT = "%Y-%m-%d %H:%M:%S"
LINE_END = "\n"
# After the last answer is cancelled its end still has to reach the client.
STREAM_END_SECONDS = 2.0
_EVENT = {
    "type": "object",
    "properties": {"event": {"type": "string"}, "data": {"type": "string", "contentMediaType": "application/json"}},
    "required": ["data"],
}
EVENT_STREAM: dict[str, Any] = {"text/event-stream": {"itemSchema": _EVENT}}
METRICS: dict[int | str, dict[str, object]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}


def upstream_router(service: RequestService, print_line: Callable[[str], object]) -> APIRouter:
    """`POST /`; `print_line` gets upstream's line about every answer."""
    router = APIRouter(route_class=ForgivingJsonRoute, tags=["ChatGLM-6B"])

    @router.post("/", summary="A whole answer, as upstream's api.py gives it")
    async def create_item(request: Request, body: Annotated[UpstreamRequest, Body()]) -> UpstreamResponse:
        history = body.history or []
        # Encoding a long prompt takes time, so a thread does it.
        answer = await asyncio.to_thread(service.submit_pairs, body.prompt, history, **body.parameters())
        async with on_disconnect(request, answer.cancel), aclosing(aiter(answer)) as deltas:
            completion = fold([delta async for delta in deltas])
        response = require_complete(completion).text
        time = datetime.now().strftime(TIME_FORMAT)
        print_line(answer_line(time, body.prompt, response))
        return UpstreamResponse(response=response, history=[*history, [body.prompt, response]], time=time)

    return router


def stream_router(service: RequestService) -> APIRouter:
    """`POST /stream`."""
    router = APIRouter(route_class=StrictJsonRoute, tags=["ChatGLM-6B"])

    @router.post(
        "/stream",
        summary="An answer as Server-Sent Events",
        response_class=EventSourceResponse,
        responses={200: {"description": "Events `delta`, then one `done` or `error`.", "content": EVENT_STREAM}},
    )
    async def stream(body: Annotated[StreamRequest, Body()]) -> EventSourceResponse:
        answer = await asyncio.to_thread(service.submit_pairs, body.prompt, body.history, **body.parameters())
        return event_stream(_events(answer, body), service.settings)

    return router


def status_router(service: RequestService) -> APIRouter:
    """`GET /health` and `GET /metrics`."""
    router = APIRouter(tags=["status"])

    @router.head("/health", include_in_schema=False)
    @router.get("/health", summary="Whether requests are taken", responses={503: {"model": Health}})
    async def health() -> Response:
        stats = service.stats()
        body = Health(
            status="shutting down" if service.is_closed else "ok",
            model=service.pipeline.name,
            running=stats.running,
            waiting=stats.waiting,
        )
        return JSONResponse(body.model_dump(), 503 if service.is_closed else 200)

    @router.get("/metrics", summary="Figures for Prometheus", response_class=Response, responses=METRICS)
    async def metrics() -> Response:
        return Response(service.metrics.render(), media_type=CONTENT_TYPE)

    return router


def event_stream(events: AsyncIterator[ServerSentEvent], settings: Settings) -> EventSourceResponse:
    """Events with heartbeats, also during shutdown. When the client disconnects the iterator is closed."""
    return EventSourceResponse(
        events,
        sep=LINE_END,
        ping=settings.heartbeat,
        ping_message_factory=lambda: ServerSentEvent(comment="heartbeat", sep=LINE_END),
        shutdown_grace_period=settings.shutdown_timeout + STREAM_END_SECONDS,
    )


async def _events(answer: Answer, body: StreamRequest) -> AsyncIterator[ServerSentEvent]:
    seen = []
    try:
        async with aclosing(aiter(answer)) as deltas:
            async for delta in deltas:
                seen.append(delta)
                if delta.text:
                    yield _event("delta", {"delta": delta.text})
    except Exception as error:
        yield _event("error", {"detail": ErrorResponse.of(error).message})
        return
    whole = fold(seen)
    usage = {"prompt_tokens": whole.prompt_tokens, "completion_tokens": whole.completion_tokens}
    summary = {
        "response": whole.text,
        "history": [*(body.history or []), [body.prompt, whole.text]],
        "finish_reason": whole.finish_reason,
        "usage": {**usage, "total_tokens": sum(usage.values())},
        "dropped_rounds": whole.dropped_rounds,
    }
    yield _event("done", summary)


def _event(name: str, data: dict[str, Any]) -> ServerSentEvent:
    return JSONServerSentEvent(data, event=name, sep=LINE_END)
