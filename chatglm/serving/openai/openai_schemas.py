"""Requests and responses of OpenAI's chat and text completion APIs.

Fields that change the form of an answer (tools, JSON schemas, logprobs) are rejected; `frequency_penalty`,
`presence_penalty` and `logit_bias` are ignored like unknown ones, because clients send them unasked.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field

from chatglm.generation.deltas import Completion, Delta
from chatglm.messages import Message
from chatglm.serving.http_errors import InvalidFieldError
from chatglm.serving.schemas import (
    NUM_SEEDS,
    FromOne,
    FromZero,
    Number,
    StopStrings,
    Strict,
    Text,
    listed,
    whole_number,
)

MAX_CHOICES = 8
MAX_PROMPTS = 16
_Choices = Annotated[int, Field(ge=1, le=MAX_CHOICES)]
Choices = Annotated[_Choices, whole_number(_Choices)]
Seed = Annotated[int, whole_number(int)]
DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's, for /v1/completions


def _text_of(content: Any) -> Any:
    """Message content as one string: null is empty, parts are joined."""
    if content is None:
        return ""
    if not isinstance(content, list):
        return content
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise ValueError("may only have parts of type text: this model reads nothing else")
    return "".join(part["text"] for part in content)


class TextPart(Strict):
    """A part of a message."""

    type: Literal["text"]
    text: str


Content = Annotated[str, BeforeValidator(_text_of, json_schema_input_type=str | list[TextPart] | None)]


_Role = Literal["system", "developer", "user", "assistant"]


def _check_role(role: Any) -> Any:
    if role in ("tool", "function"):
        raise ValueError(
            f"cannot be {role!r}: this model knows no tools. Put the result of the tool into a message of the user"
        )
    return role


class ChatMessage(Strict):
    """One message."""

    role: Annotated[_Role, BeforeValidator(_check_role, json_schema_input_type=_Role)]
    content: Content = ""


def _unsupported(reason: str, schema: Any) -> Any:
    def check(value: Any) -> None:
        if value:
            raise ValueError(reason)

    return BeforeValidator(check, json_schema_input_type=schema)


NoTools = Annotated[
    None, _unsupported("cannot be given: this model knows no tools", Annotated[list[Any], Field(max_length=0)] | None)
]
NoLogprobs = Annotated[None, _unsupported("cannot be given by this server", Literal[False] | None)]
NoCount = Annotated[None, _unsupported("cannot be given by this server", Literal[0] | None)]
NoSuffix = Annotated[None, _unsupported("cannot be given: this model only continues text", Literal[""] | None)]


def _check_format(value: Any) -> Any:
    kind = value.get("type", "text") if isinstance(value, dict) else "text"
    if kind != "text":
        raise ValueError(
            f"cannot be of type {str(kind)[:50]!r}: this model cannot be held to a format. Leave it out, ask for the "
            "format in the message, and check the answer"
        )
    return value


class PlainText(Strict):
    """The only form of answers: text."""

    type: Literal["text"] = "text"


Format = Annotated[PlainText, BeforeValidator(_check_format, json_schema_input_type=PlainText)]


class StreamOptions(Strict):
    """How a stream is given."""

    include_usage: bool | None = Field(None, description="End with a chunk that holds the usage.")


_PromptList = Annotated[list[Text], Field(min_length=1, max_length=MAX_PROMPTS)]


def _prompts(value: Any) -> Any:
    if value is None:
        raise ValueError('must be text. To begin without any, use /v1/chat/completions or send "\\n"')
    return listed(value)


Prompts = Annotated[_PromptList, BeforeValidator(_prompts, json_schema_input_type=Text | _PromptList)]


class CompletionOptions(Strict):
    """Fields of both APIs. Beyond OpenAI's: top_k, repetition_penalty, max_length, adapter."""

    model: str | None = Field(None, description="Any name: the one loaded model answers.")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Choices | None = Field(None, description="Answers to give.")
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = Field(None, description="0 = greedy.")
    top_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    top_k: FromZero | None = Field(None, description="0 = all tokens.")
    repetition_penalty: Annotated[Number, Field(ge=0.1, le=10)] | None = None
    max_tokens: FromOne | None = Field(None, description="Tokens of the answer; more than fits is clamped.")
    max_length: FromOne | None = Field(None, description="Tokens of prompt and answer together.")
    adapter: bool | None = Field(None, description="false leaves a P-Tuning prefix or LoRA update out of this answer.")
    seed: Seed | None = None
    stop: StopStrings | None = None

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def parameters(self, choice: int) -> dict[str, Any]:
        """Generation parameters of the n-th choice; None = the default. Each choice has its own seed."""
        return {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "repetition_penalty": self.repetition_penalty,
            "max_new_tokens": self.max_tokens,
            "max_length": self.max_length,
            "stop": self.stop,
            "adapter": self.adapter,
            "seed": None if self.seed is None else (self.seed + choice) % NUM_SEEDS,
        }


class ChatRequest(CompletionOptions):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)] = Field(
        examples=[[{"role": "user", "content": "你好"}]],
        description="The last one is the user's, or an instruction of the system, which is then answered.",
    )
    max_completion_tokens: FromOne | None = Field(None, description="As max_tokens, and before it.")
    tools: NoTools = None
    functions: NoTools = None
    logprobs: NoLogprobs = None
    response_format: Format | None = None

    def parameters(self, choice: int) -> dict[str, Any]:
        """As `CompletionOptions.parameters`."""
        parameters = super().parameters(choice)
        return {**parameters, "max_new_tokens": self.max_completion_tokens or self.max_tokens}

    def conversation(self) -> list[Message]:
        """The messages, for `Pipeline.submit`; raises InvalidFieldError unless something to be answered is last.

        Clients that want a summary, or give a task, put a system message last: it is what is to be answered.
        """
        messages = [Message("system" if m.role == "developer" else m.role, m.content) for m in self.messages]
        spoken = [message for message in messages if message.role != "system"]
        if messages[-1].role == "system" and (not spoken or spoken[-1].role == "assistant"):
            messages[-1] = Message("user", messages[-1].content)
            spoken.append(messages[-1])
        query = list(takewhile(lambda message: message.role == "user", reversed(spoken)))
        if not query:
            raise InvalidFieldError(
                "The last message must be the user's: an answer cannot be continued here.", "messages"
            )
        if not any(message.content for message in query):
            raise InvalidFieldError("The last message must not be empty.", "messages")
        return messages


class TextRequest(CompletionOptions):
    """`POST /v1/completions`: raw text to continue, without a chat template."""

    prompt: Prompts = Field(examples=["你好"])
    echo: bool | None = Field(None, description="Begin the answer with the prompt.")
    suffix: NoSuffix = None
    logprobs: NoCount = None

    def parameters(self, choice: int) -> dict[str, Any]:
        """As `CompletionOptions.parameters`; OpenAI's default is a short answer."""
        parameters = super().parameters(choice)
        return {**parameters, "max_new_tokens": self.max_tokens or DEFAULT_COMPLETION_TOKENS}


OpenAIFinishReason = Literal["stop", "length"]


class PromptTokensDetails(BaseModel):
    """Tokens of the prompt that were known from another request."""

    cached_tokens: int


class Usage(BaseModel):
    """Tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class AssistantMessage(BaseModel):
    """The model's message."""

    role: Literal["assistant"] = "assistant"
    content: str


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: AssistantMessage
    logprobs: None = None
    finish_reason: OpenAIFinishReason


class ChatCompletion(BaseModel):
    """The answer of `/v1/chat/completions`. Beyond OpenAI's: dropped_rounds, the oldest ones left out to fit."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    dropped_rounds: int = 0


class TextChoice(BaseModel):
    """One continuation."""

    index: int
    text: str
    logprobs: None = None
    finish_reason: OpenAIFinishReason


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


class OpenAIErrorDetail(BaseModel):
    """An error."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIError(BaseModel):
    """Every error below /v1."""

    error: OpenAIErrorDetail


def total_usage(answers: Sequence[Completion], num_choices: int) -> Usage:
    """Usage of all answers of a request. A prompt is counted once, however many choices it has."""
    prompt = sum(answer.prompt_tokens for answer in answers[::num_choices])
    completion = sum(answer.completion_tokens for answer in answers)
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion,
        prompt_tokens_details=PromptTokensDetails(
            cached_tokens=sum(answer.cached_tokens for answer in answers[::num_choices])
        ),
    )


def openai_reason(reason: str) -> OpenAIFinishReason:
    """The finish reason of a complete answer."""
    return "length" if reason == "length" else "stop"


@dataclass(frozen=True)
class Chunks:
    """Makes the chunks of one stream, as JSON values."""

    model: str  # the name given to clients
    is_chat: bool  # whether the choices have messages rather than text
    includes_usage: bool  # whether a chunk with the usage ends the stream; in the others it is null
    id: str = field(default_factory=lambda: new_id("chatcmpl"))
    created: int = field(default_factory=lambda: int(time.time()))

    def role(self, index: int) -> dict[str, Any]:
        """The first chunk of a chat answer."""
        return self._chunk([{"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])

    def text(self, index: int, text: str) -> dict[str, Any]:
        """New text."""
        content = {"delta": {"content": text}} if self.is_chat else {"text": text, "logprobs": None}
        return self._chunk([{"index": index, **content, "finish_reason": None}])

    def end(self, index: int, last: Delta) -> dict[str, Any]:
        """An answer has ended."""
        content: dict[str, Any] = {"delta": {}} if self.is_chat else {"text": "", "logprobs": None}
        chunk = self._chunk([{"index": index, **content, "finish_reason": openai_reason(str(last.finish_reason))}])
        return {**chunk, "dropped_rounds": last.dropped_rounds} if self.is_chat else chunk

    def usage(self, usage: Usage) -> dict[str, Any]:
        """The last chunk: usage and no choices."""
        return {**self._chunk([]), "usage": usage.model_dump()}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self.is_chat else "text_completion"
        head = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        return {**head, "choices": choices, **({"usage": None} if self.includes_usage else {})}


def new_id(prefix: str) -> str:
    """A unique id."""
    return f"{prefix}-{uuid.uuid4().hex}"
