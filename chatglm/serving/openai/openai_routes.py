"""`/v1/models`, `/v1/chat/completions` and `/v1/completions`."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request
from sse_starlette import ServerSentEvent

from chatglm.errors import InvalidRequestError
from chatglm.generation.deltas import Completion, Delta, fold
from chatglm.serving.http_errors import ErrorResponse, UnknownModelError
from chatglm.serving.middleware import StrictJsonRoute, on_disconnect
from chatglm.serving.openai.openai_schemas import (
    AssistantMessage,
    ChatChoice,
    ChatCompletion,
    ChatRequest,
    Chunks,
    CompletionOptions,
    ModelCard,
    ModelList,
    OpenAIError,
    TextChoice,
    TextCompletion,
    TextRequest,
    new_id,
    openai_reason,
    total_usage,
)
from chatglm.serving.routes import EVENT_STREAM, LINE_END, event_stream
from chatglm.serving.service import Answer, RequestService, merge, require_complete

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": OpenAIError} for status in (400, 401, 404, 413, 415, 429, 500, 503, 504)
}
STREAMS: dict[int | str, dict[str, Any]] = {200: {"content": EVENT_STREAM}, **ERRORS}


# Starts one answer with its generation parameters.
Submit = Callable[..., Answer]


def openai_router(service: RequestService) -> APIRouter:
    """All routes below /v1."""
    router = APIRouter(prefix="/v1", route_class=StrictJsonRoute, tags=["OpenAI"])
    card = ModelCard(id=service.pipeline.name, created=int(time.time()))

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
        answers = await _start(service, body, [partial(service.submit, body.conversation())])
        if body.stream:
            return event_stream(_stream(answers, body, Chunks(card.id, True, body.includes_usage)), service.settings)
        wholes = await _read_all(request, answers)
        choices = [
            ChatChoice(
                index=i, message=AssistantMessage(content=whole.text), finish_reason=openai_reason(whole.finish_reason)
            )
            for i, whole in enumerate(wholes)
        ]
        return ChatCompletion(
            id=new_id("chatcmpl"),
            created=int(time.time()),
            model=card.id,
            choices=choices,
            usage=total_usage(wholes, body.n or 1),
            dropped_rounds=wholes[0].dropped_rounds,
        )

    @router.post("/completions", summary="Continue text", response_model=TextCompletion, responses=STREAMS)
    async def complete(request: Request, body: Annotated[TextRequest, Body()]) -> Any:
        answers = await _start(service, body, [partial(service.complete, text) for text in body.prompt])
        echoes = [text if body.echo else "" for text in body.prompt for _ in range(body.n or 1)]
        if body.stream:
            chunks = Chunks(card.id, False, body.includes_usage, id=new_id("cmpl"))
            return event_stream(_stream(answers, body, chunks, echoes), service.settings)
        wholes = await _read_all(request, answers)
        choices = [
            TextChoice(index=i, text=echo + whole.text, finish_reason=openai_reason(whole.finish_reason))
            for i, (echo, whole) in enumerate(zip(echoes, wholes, strict=True))
        ]
        usage = total_usage(wholes, body.n or 1)
        return TextCompletion(id=new_id("cmpl"), created=int(time.time()), model=card.id, choices=choices, usage=usage)

    return router


async def _start(service: RequestService, body: CompletionOptions, submits: Sequence[Submit]) -> list[Answer]:
    """`n` answers for each prompt, or none: when one is rejected, the others are cancelled."""
    num_choices = body.n or 1
    num_slots = service.settings.max_running + service.settings.max_waiting
    if num_choices * len(submits) > num_slots:
        raise InvalidRequestError(
            f"{num_choices * len(submits)} answers are asked for, but this server has room for {num_slots}."
        )
    answers: list[Answer] = []

    def start() -> None:
        for submit in submits:
            for choice in range(num_choices):
                answers.append(submit(**body.parameters(choice)))

    try:
        await asyncio.to_thread(start)  # encoding a long prompt takes time
    except BaseException:
        for answer in answers:
            answer.cancel()
        raise
    return answers


async def _read_all(request: Request, answers: Sequence[Answer]) -> list[Completion]:
    """All answers as a whole; they are cancelled if the client disconnects."""

    def cancel() -> None:
        for answer in answers:
            answer.cancel()

    seen: list[list[Delta]] = [[] for _ in answers]
    async with on_disconnect(request, cancel), aclosing(merge(answers)) as deltas:
        async for index, delta in deltas:
            seen[index].append(delta)
    return [require_complete(fold(each)) for each in seen]


async def _stream(
    answers: Sequence[Answer], body: CompletionOptions, chunks: Chunks, echoes: Sequence[str] = ()
) -> AsyncIterator[ServerSentEvent]:
    """Chunks until "[DONE]"; an error in the middle is a chunk too, as OpenAI's clients expect."""
    last = [Delta("") for _ in answers]
    try:
        for index in range(len(answers)):
            if chunks.is_chat:
                yield _data(chunks.role(index))
        for index, echo in enumerate(echoes):
            if echo:
                yield _data(chunks.text(index, echo))
        async with aclosing(merge(answers)) as deltas:
            async for index, delta in deltas:
                last[index] = delta
                if delta.text:
                    yield _data(chunks.text(index, delta.text))
                if delta.finish_reason in ("stop", "length"):
                    yield _data(chunks.end(index, delta))
        wholes = [require_complete(fold([delta])) for delta in last]
        if body.includes_usage:
            yield _data(chunks.usage(total_usage(wholes, body.n or 1)))
    except Exception as error:
        yield _data(ErrorResponse.of(error).openai_body)
    yield ServerSentEvent("[DONE]", sep=LINE_END)


def _data(value: dict[str, Any]) -> ServerSentEvent:
    return ServerSentEvent(json.dumps(value, ensure_ascii=False, separators=(",", ":")), sep=LINE_END)
