"""`POST /` as upstream's api.py has it: one prompt in, four fields out.

Knows: the fields and their bytes. Does not know how an answer is made.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Body, Request
from pydantic import BaseModel

from chatglm.serving.answer import Answer, Whole
from chatglm.serving.desk import RequestService
from chatglm.serving.disconnects import on_disconnect
from chatglm.serving.json_route import ForgivingJsonRoute
from chatglm.serving.options import Round, UpstreamRequest
from chatglm.serving.request_log import answer_line

TIME_FORMAT = "%Y-%m-%d %H:%M:%S"


class UpstreamResponse(BaseModel):
    """Exactly four fields, in this order."""

    response: str
    history: list[Round]
    status: int = 200
    time: str


def make_router(desk: RequestService, print_line: Callable[[str], object]) -> APIRouter:
    """The route of `POST /`; `print_line` gets upstream's line about every answer."""
    router = APIRouter(route_class=ForgivingJsonRoute, tags=["ChatGLM-6B"])

    @router.post("/", summary="A whole answer, as upstream's api.py gives it")
    async def create_item(request: Request, body: Annotated[UpstreamRequest, Body()]) -> UpstreamResponse:
        history = body.history or []
        answer = await desk.asubmit(body.prompt, history, **body.parameters())
        response = (await read_whole(request, answer)).text
        time = datetime.now().strftime(TIME_FORMAT)
        print_line(answer_line(time, body.prompt, response))
        return UpstreamResponse(response=response, history=[*history, [body.prompt, response]], time=time)

    return router


async def read_whole(request: Request, answer: Answer) -> Whole:
    """All of an answer; a client that leaves cancels it.

    Raises:
        ChatGLMError: it failed, or was ended by somebody else than the model and the limits of the request.
    """
    whole = Whole()
    async with on_disconnect(request, answer.cancel), aclosing(aiter(answer)) as deltas:
        async for delta in deltas:
            whole.add(delta)
    whole.require_complete()
    return whole
