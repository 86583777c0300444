"""The decode loop of one request: prompt ids in, token ids and then text out, one step at a time.

Knows: limits, stopping, cancelling, giving memory back. Does not know families (they fill in `DecodableModel`),
prompts, or other requests. Streaming is the primitive here; a whole answer is its fold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from chatglm.errors import ChatGLMError, OutOfMemoryError, PromptTooLongError
from chatglm.generation.config import GenerationConfig
from chatglm.generation.deltas import Delta, FinishReason
from chatglm.generation.detokenizer import IncrementalDetokenizer, SurfaceTokenizer
from chatglm.generation.next_token import LogitsProcessor, NextToken


def never() -> bool:
    """The cancel flag of a request that nobody cancels."""
    return False


class DecodableModel(Protocol):
    """What a family's network offers to the loop."""

    config: Any
    device: Any

    def new_cache(self, capacity: int) -> Any: ...
    def prompt_layout(self, input_ids: Tensor) -> Any: ...
    def prefill(self, input_ids: Tensor, layout: Any, cache: Any) -> Tensor: ...
    def decode(self, input_ids: Tensor, layout: Any, cache: Any) -> Tensor: ...


def token_limit(num_prompt: int, config: GenerationConfig, context_limit: int) -> int:
    """How many tokens an answer may have.

    Raises:
        PromptTooLongError: the prompt alone reaches `max_length` or the model's context.
    """
    limit = min(config.max_length, context_limit)
    if num_prompt >= limit:
        raise PromptTooLongError(
            f"The prompt has {num_prompt} tokens, but prompt and answer together may have {limit}.",
            "Shorten it or raise max_length." if limit < context_limit else "Shorten it.",
        )
    return min(limit - num_prompt, config.max_new_tokens or limit)


def stream_token_ids(
    model: DecodableModel,
    input_ids: Sequence[int],
    config: GenerationConfig,
    is_cancelled: Callable[[], bool] = never,
    processors: Sequence[LogitsProcessor] = (),
) -> Iterator[int | FinishReason]:
    """Token ids of the answer as they are made, then the finish reason.

    Every id made is delivered, the one that reaches a limit included; the end token is not.

    Args:
        model: the network, in eval mode.
        input_ids: prompt ids as the tokenizer makes them.
        config: limits and sampling.
        is_cancelled: asked before every step.
        processors: transformers' logits processors, called with ids [1, n] and scores [1, V].

    Raises:
        PromptTooLongError: before any step.
        InvalidLogitsError: the network produced NaN or infinity.
        OutOfMemoryError: the device has no room for the next step.
    """
    num_left = token_limit(len(input_ids), config, model.config.max_sequence_length)
    prompt = torch.tensor([list(input_ids)], device=model.device)
    layout = model.prompt_layout(prompt)
    cache = model.new_cache(len(input_ids) + min(num_left, 256))
    tokens = NextToken(prompt, config, model.config.eos_token_id, processors)
    while True:
        if is_cancelled():
            yield "cancelled"
            return
        with torch.inference_mode(), memory_errors(tokens.ids.shape[1]):
            last = tokens.ids[:, -1:]
            scores = model.decode(last, layout, cache) if tokens.num_made else model.prefill(prompt, layout, cache)
            token_id = tokens.take(scores)
        if token_id is None:
            yield "stop"
            return
        yield token_id
        if tokens.num_made == num_left:
            yield "length"
            return


@contextmanager
def memory_errors(num_tokens: int) -> Iterator[None]:
    """A device's failure to allocate, as a sentence."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(
            f"Memory ran out on the device at {num_tokens} tokens of prompt and answer.",
            "Give a smaller --max-length, --quantize 8 or 4, or another --device.",
        ) from error


class AnswerText:
    """The deltas of one answer, from its ids.

    Attributes:
        num_tokens: ids pushed so far.
    """

    def __init__(
        self, tokenizer: SurfaceTokenizer, config: GenerationConfig, prompt_tokens: int, dropped_rounds: int = 0
    ) -> None:
        self.num_tokens = 0
        self._detokenizer = IncrementalDetokenizer(tokenizer, stop_strings=config.stop)
        self._prompt_tokens = prompt_tokens
        self._dropped_rounds = dropped_rounds

    def push(self, token_id: int) -> Delta:
        """Take one id. The delta is the last one, with "stop", if a stop string is complete."""
        text = self._detokenizer.push(token_id)
        self.num_tokens += 1
        return self._delta(text, "stop" if self._detokenizer.stopped else None)

    def finish(self, reason: FinishReason) -> Delta:
        """The last delta, with the text held back until now."""
        text = self._detokenizer.finish()
        # A stop string may be completed only by that.
        return self._delta(text, "stop" if self._detokenizer.stopped and reason != "error" else reason)

    def _delta(self, text: str, reason: FinishReason | None) -> Delta:
        return Delta(text, reason, self._prompt_tokens, self.num_tokens, self._dropped_rounds)


def stream_text(
    model: DecodableModel,
    tokenizer: Any,
    input_ids: Sequence[int],
    config: GenerationConfig,
    is_cancelled: Callable[[], bool] = never,
    processors: Sequence[LogitsProcessor] = (),
    dropped_rounds: int = 0,
) -> Iterator[Delta]:
    """The answer's text as deltas; joined they are the final text, and the last one has a finish reason.

    After an error in the middle, the text made so far is delivered with finish reason "error", then the error is
    raised. Arguments and errors as `stream_token_ids`.
    """
    answer = AnswerText(tokenizer, config, len(input_ids), dropped_rounds)
    try:
        for item in stream_token_ids(model, input_ids, config, is_cancelled, processors):
            delta = answer.finish(item) if isinstance(item, str) else answer.push(item)
            yield delta
            if delta.finish_reason is not None:
                return
    except ChatGLMError:
        # What was made so far is not lost.
        if answer.num_tokens:
            yield answer.finish("error")
        raise
