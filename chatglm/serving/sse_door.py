"""`POST /stream`: an answer as Server-Sent Events.

Knows: the events. Does not know how an answer is made.

    event: delta     data: {"delta": "你好"}                        as often as there is new text
    event: done      data: {"response": ..., "history": ..., "finish_reason": "stop", "usage": {...}, ...}
    event: error     data: {"detail": "..."}                        instead of `done`, when the answer failed

Lines that begin with ":" are heartbeats. Joined deltas are the response.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Body
from sse_starlette import EventSourceResponse, JSONServerSentEvent, ServerSentEvent

from chatglm.cli.settings import Settings
from chatglm.serving.answer import Answer, Whole
from chatglm.serving.desk import RequestService
from chatglm.serving.errors import refuse
from chatglm.serving.json_route import StrictJsonRoute
from chatglm.serving.options import StreamRequest

LINE_END = "\n"


def make_router(desk: RequestService) -> APIRouter:
    """The route of `POST /stream`."""
    router = APIRouter(route_class=StrictJsonRoute, tags=["ChatGLM-6B"])

    @router.post(
        "/stream",
        summary="An answer as Server-Sent Events",
        response_class=EventSourceResponse,
        responses={200: {"description": "Events `delta`, then one `done` or `error`.", "content": EVENT_STREAM}},
    )
    async def stream(body: Annotated[StreamRequest, Body()]) -> EventSourceResponse:
        answer = await desk.asubmit(body.prompt, body.history, **body.parameters())
        return event_stream(_events(answer, body), desk.settings)

    return router


_EVENT = {
    "type": "object",
    "properties": {"event": {"type": "string"}, "data": {"type": "string", "contentMediaType": "application/json"}},
    "required": ["data"],
}
EVENT_STREAM: dict[str, Any] = {"text/event-stream": {"itemSchema": _EVENT}}


def event_stream(events: AsyncIterator[ServerSentEvent], settings: Settings) -> EventSourceResponse:
    """Events as a response with heartbeats. A client that leaves closes the iterator.

    When the server shuts down, streams go on while their answers do: the desk ends those.
    """
    return EventSourceResponse(
        events,
        sep=LINE_END,
        ping=settings.heartbeat,
        ping_message_factory=lambda: ServerSentEvent(comment="heartbeat", sep=LINE_END),
        shutdown_grace_period=settings.shutdown_timeout + STREAM_END_SECONDS,
    )


# After the last answer is cancelled its end still has to reach the client.
STREAM_END_SECONDS = 2.0


async def _events(answer: Answer, body: StreamRequest) -> AsyncIterator[ServerSentEvent]:
    whole = Whole()
    try:
        async with aclosing(aiter(answer)) as deltas:
            async for delta in deltas:
                whole.add(delta)
                if delta.text:
                    yield _event("delta", {"delta": delta.text})
    except Exception as error:
        yield _event("error", {"detail": refuse(error).sentence})
        return
    yield _event("done", _summary(whole, body))


def _summary(whole: Whole, body: StreamRequest) -> dict[str, Any]:
    return {
        "response": whole.text,
        "history": [*(body.history or []), [body.prompt, whole.text]],
        "finish_reason": whole.last.finish_reason,
        "usage": whole.usage,
        "dropped_rounds": whole.last.dropped_rounds,
    }


def _event(name: str, data: dict[str, Any]) -> ServerSentEvent:
    return JSONServerSentEvent(data, event=name, sep=LINE_END)
