"""Requests of OpenAI's chat and text completion APIs, and what they mean to us.

Knows: OpenAI's fields; which of them this server can honour. Does not know HTTP or how an answer is made.

What changes the form of an answer (tools, JSON schemas, log probabilities) is refused. What only nudges the sampling
(`frequency_penalty`, `presence_penalty`, `logit_bias`) is ignored like everything unknown, because programs send it
without being asked.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from chatglm.messages import Message
from chatglm.serving.openai_messages import Conversation, to_conversation
from chatglm.serving.options import (
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


class ChatMessage(Strict):
    """One message."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content = ""


def _refused(reason: str, schema: Any) -> Any:
    """A field that may only have its empty value."""

    def check(value: Any) -> None:
        if value:
            raise ValueError(reason)

    return BeforeValidator(check, json_schema_input_type=schema)


NoTools = Annotated[
    None, _refused("cannot be given: this model knows no tools", Annotated[list[Any], Field(max_length=0)] | None)
]
NoLogprobs = Annotated[None, _refused("cannot be given by this server", Literal[False] | None)]
NoCount = Annotated[None, _refused("cannot be given by this server", Literal[0] | None)]
NoSuffix = Annotated[None, _refused("cannot be given: this model only continues text", Literal[""] | None)]


class PlainText(Strict):
    """The only form of answers: text."""

    type: Literal["text"] = "text"


class StreamOptions(Strict):
    """How a stream is given."""

    include_usage: bool | None = Field(None, description="End with a chunk that holds the usage.")


_PromptList = Annotated[list[Text], Field(min_length=1, max_length=MAX_PROMPTS)]
Prompts = Annotated[_PromptList, BeforeValidator(listed, json_schema_input_type=Text | _PromptList)]


class CompletionOptions(Strict):
    """The fields both APIs share. Those beyond OpenAI's: top_k, repetition_penalty, max_length, adapter."""

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
        """Generation parameters of one of the answers, counted from 0; None = the default.

        Each has a seed of its own, or all would be the same.
        """
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
        examples=[[{"role": "user", "content": "你好"}]], description="The last one is the user's."
    )
    max_completion_tokens: FromOne | None = Field(None, description="As max_tokens, and before it.")
    tools: NoTools = None
    functions: NoTools = None
    logprobs: NoLogprobs = None
    response_format: PlainText | None = None

    def parameters(self, choice: int) -> dict[str, Any]:
        """As `CompletionOptions.parameters`."""
        parameters = super().parameters(choice)
        return {**parameters, "max_new_tokens": self.max_completion_tokens or self.max_tokens}

    def conversation(self) -> Conversation:
        """The messages as query, history and system.

        Raises:
            InvalidRequestError: the last one who speaks is not the user.
        """
        return to_conversation(
            [Message("system" if m.role == "developer" else m.role, m.content) for m in self.messages]
        )


class TextRequest(CompletionOptions):
    """`POST /v1/completions`: text to go on with, outside of any conversation."""

    prompt: Prompts = Field(examples=["你好"])
    echo: bool | None = Field(None, description="Begin the answer with the prompt.")
    suffix: NoSuffix = None
    logprobs: NoCount = None

    def parameters(self, choice: int) -> dict[str, Any]:
        """As `CompletionOptions.parameters`; OpenAI's default is a short answer."""
        parameters = super().parameters(choice)
        return {**parameters, "max_new_tokens": self.max_tokens or DEFAULT_COMPLETION_TOKENS}
