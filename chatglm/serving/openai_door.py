"""The OpenAI-compatible API: `/v1/models`, `/v1/chat/completions`, `/v1/completions`.

Knows: routes, and how deltas become completions or chunks. Does not know fields (`openai_requests.py`,
`openai_responses.py`) or how an answer is made.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Annotated, Any, NamedTuple

from fastapi import APIRouter, Body, Request
from sse_starlette import ServerSentEvent

from chatglm.errors import InvalidRequestError
from chatglm.messages import History
from chatglm.serving.answer import Answer, Whole
from chatglm.serving.desk import RequestService
from chatglm.serving.disconnects import on_disconnect
from chatglm.serving.errors import UnknownModelError, refuse
from chatglm.serving.json_route import StrictJsonRoute
from chatglm.serving.merging import merge
from chatglm.serving.openai_requests import ChatRequest, CompletionOptions, TextRequest
from chatglm.serving.openai_responses import (
    AssistantMessage,
    ChatChoice,
    ChatCompletion,
    Chunks,
    ModelCard,
    ModelList,
    OpenAIError,
    TextChoice,
    TextCompletion,
    finish_reason,
    new_id,
    total_usage,
)
from chatglm.serving.sse_door import EVENT_STREAM, LINE_END, event_stream

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": OpenAIError} for status in (400, 401, 404, 413, 415, 429, 500, 503, 504)
}
STREAMS: dict[int | str, dict[str, Any]] = {200: {"content": EVENT_STREAM}, **ERRORS}


class Prompt(NamedTuple):
    """What one or several answers are made from."""

    query: str
    history: History = []
    system: str | None = None


def make_router(desk: RequestService) -> APIRouter:
    """All routes below /v1."""
    router = APIRouter(prefix="/v1", route_class=StrictJsonRoute, tags=["OpenAI"])
    card = ModelCard(id=desk.pipeline.name, created=int(time.time()))

    @router.get("/models", summary="The loaded model", responses=ERRORS)
    async def list_models() -> ModelList:
        return ModelList(data=[card])

    @router.get("/models/{model}", summary="One model", responses=ERRORS)
    async def get_model(model: str) -> ModelCard:
        if model != card.id:
            raise UnknownModelError(f"There is no model {model[:100]!r} here.", f"The loaded one is {card.id!r}.")
        return card

    @router.post("/chat/completions", summary="Chat", response_model=ChatCompletion, responses=STREAMS)
    async def chat(request: Request, body: Annotated[ChatRequest, Body()]) -> Any:
        query, history, system = body.conversation()
        answers = await _submit(desk, body, [Prompt(query, history, system)])
        if body.stream:
            return event_stream(_stream(answers, body, Chunks(card.id, True, body.includes_usage)), desk.settings)
        wholes = await _read_all(request, answers)
        choices = [
            ChatChoice(index=i, message=AssistantMessage(content=whole.text), finish_reason=finish_reason(whole))
            for i, whole in enumerate(wholes)
        ]
        usage = total_usage(wholes, body.n or 1)
        return ChatCompletion(
            id=new_id("chatcmpl"), created=int(time.time()), model=card.id, choices=choices, usage=usage
        )

    @router.post("/completions", summary="Continue text", response_model=TextCompletion, responses=STREAMS)
    async def complete(request: Request, body: Annotated[TextRequest, Body()]) -> Any:
        answers = await _submit(desk, body, [Prompt(text) for text in body.prompt])
        echoes = [text if body.echo else "" for text in body.prompt for _ in range(body.n or 1)]
        if body.stream:
            chunks = Chunks(card.id, False, body.includes_usage, id=new_id("cmpl"))
            return event_stream(_stream(answers, body, chunks, echoes), desk.settings)
        wholes = await _read_all(request, answers)
        choices = [
            TextChoice(index=i, text=echo + whole.text, finish_reason=finish_reason(whole))
            for i, (echo, whole) in enumerate(zip(echoes, wholes, strict=True))
        ]
        usage = total_usage(wholes, body.n or 1)
        return TextCompletion(id=new_id("cmpl"), created=int(time.time()), model=card.id, choices=choices, usage=usage)

    return router


async def _submit(desk: RequestService, body: CompletionOptions, prompts: Sequence[Prompt]) -> list[Answer]:
    """Every answer the request asks for, or none: when one is refused, the others are cancelled."""
    num_choices = body.n or 1
    num_slots = desk.settings.max_running + desk.settings.max_waiting
    if num_choices * len(prompts) > num_slots:
        raise InvalidRequestError(
            f"{num_choices * len(prompts)} answers are asked for, but this server has room for {num_slots}."
        )
    answers: list[Answer] = []

    def submit() -> None:
        for prompt in prompts:
            for choice in range(num_choices):
                answers.append(
                    desk.submit(prompt.query, prompt.history, system=prompt.system, **body.parameters(choice))
                )

    try:
        await asyncio.to_thread(submit)
    except BaseException:
        for answer in answers:
            answer.cancel()
        raise
    return answers


async def _read_all(request: Request, answers: Sequence[Answer]) -> list[Whole]:
    """All of all answers; a client that leaves cancels them."""

    def cancel() -> None:
        for answer in answers:
            answer.cancel()

    wholes = [Whole() for _ in answers]
    async with on_disconnect(request, cancel), aclosing(merge(answers)) as deltas:
        async for index, delta in deltas:
            wholes[index].add(delta)
    for whole in wholes:
        whole.require_complete()
    return wholes


async def _stream(
    answers: Sequence[Answer], body: CompletionOptions, chunks: Chunks, echoes: Sequence[str] = ()
) -> AsyncIterator[ServerSentEvent]:
    """Chunks until "[DONE]"; an error in the middle is a chunk too, as OpenAI's clients expect."""
    wholes = [Whole() for _ in answers]
    try:
        for index in range(len(answers)):
            if chunks.is_chat:
                yield _data(chunks.role(index))
        for index, echo in enumerate(echoes):
            if echo:
                yield _data(chunks.text(index, echo))
        async with aclosing(merge(answers)) as deltas:
            async for index, delta in deltas:
                wholes[index].add(delta)
                if delta.text:
                    yield _data(chunks.text(index, delta.text))
                if delta.finish_reason in ("stop", "length"):
                    yield _data(chunks.end(index, finish_reason(wholes[index])))
        for whole in wholes:
            whole.require_complete()
        if body.includes_usage:
            yield _data(chunks.usage(total_usage(wholes, body.n or 1)))
    except Exception as error:
        yield _data(refuse(error).openai_body())
    yield ServerSentEvent("[DONE]", sep=LINE_END)


def _data(value: dict[str, Any]) -> ServerSentEvent:
    return ServerSentEvent(json.dumps(value, ensure_ascii=False, separators=(",", ":")), sep=LINE_END)
