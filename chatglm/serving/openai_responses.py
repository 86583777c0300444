"""The objects OpenAI's clients read: completions, chunks, usage, models.

Knows: their fields. Does not know requests or how an answer is made.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel

from chatglm.serving.answer import Whole

FinishReason = Literal["stop", "length"]


class Usage(BaseModel):
    """Tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class AssistantMessage(BaseModel):
    """The model's message."""

    role: Literal["assistant"] = "assistant"
    content: str


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: AssistantMessage
    logprobs: None = None
    finish_reason: FinishReason


class ChatCompletion(BaseModel):
    """The answer of `/v1/chat/completions`."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class TextChoice(BaseModel):
    """One continuation."""

    index: int
    text: str
    logprobs: None = None
    finish_reason: FinishReason


class TextCompletion(BaseModel):
    """The answer of `/v1/completions`."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage


class ModelCard(BaseModel):
    """A model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "chatglm"


class ModelList(BaseModel):
    """All models: the loaded one."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIError(BaseModel):
    """Every error below /v1."""

    error: ErrorDetail


def total_usage(answers: Sequence[Whole], num_choices: int) -> Usage:
    """Usage of all answers of a request. A prompt is counted once, however many choices were made from it."""
    prompt = sum(answer.last.prompt_tokens for answer in answers[::num_choices])
    completion = sum(answer.last.completion_tokens for answer in answers)
    return Usage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)


def finish_reason(whole: Whole) -> FinishReason:
    """Of a complete answer."""
    return "length" if whole.last.finish_reason == "length" else "stop"


@dataclass(frozen=True)
class Chunks:
    """The chunks of one stream, as JSON values.

    Attributes:
        model: the name given to clients.
        is_chat: whether the choices hold messages rather than text.
        includes_usage: whether a chunk with the usage ends the stream; the others then say null.
    """

    model: str
    is_chat: bool
    includes_usage: bool
    id: str = field(default_factory=lambda: new_id("chatcmpl"))
    created: int = field(default_factory=lambda: int(time.time()))

    def role(self, index: int) -> dict[str, Any]:
        """The first chunk of a chat answer."""
        return self._chunk([{"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])

    def text(self, index: int, text: str) -> dict[str, Any]:
        """New text."""
        content = {"delta": {"content": text}} if self.is_chat else {"text": text, "logprobs": None}
        return self._chunk([{"index": index, **content, "finish_reason": None}])

    def end(self, index: int, reason: FinishReason) -> dict[str, Any]:
        """An answer has ended."""
        content: dict[str, Any] = {"delta": {}} if self.is_chat else {"text": "", "logprobs": None}
        return self._chunk([{"index": index, **content, "finish_reason": reason}])

    def usage(self, usage: Usage) -> dict[str, Any]:
        """The last chunk: usage and no choices."""
        return {**self._chunk([]), "usage": usage.model_dump()}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self.is_chat else "text_completion"
        head = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        return {**head, "choices": choices, **({"usage": None} if self.includes_usage else {})}


def new_id(prefix: str) -> str:
    """An id no other answer has."""
    return f"{prefix}-{uuid.uuid4().hex}"
