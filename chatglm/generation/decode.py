"""The decode loop of one request: prompt ids in, token ids and then text out, one step at a time.

Knows: limits, stopping, cancelling, giving memory back. Does not know families (they fill in `DecodableModel`),
prompts, or other requests. Streaming is the primitive here; a whole answer is its fold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from chatglm.errors import ChatGLMError, OutOfMemoryError, PromptTooLongError
from chatglm.generation.config import GenerationConfig
from chatglm.generation.detokenizer import IncrementalDetokenizer
from chatglm.generation.sampling import forbid, new_generator, penalize_repetition, pick, require_finite

FinishReason = Literal["stop", "length", "cancelled", "error"]
ScoresProcessor = Callable[[Tensor, Tensor], Tensor]


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


@dataclass(frozen=True)
class Delta:
    """New text of an answer; the last one of an answer carries why it ended.

    Attributes:
        text: what is new; may be empty.
        finish_reason: None until the last delta.
        prompt_tokens: ids of the prompt, specials included.
        completion_tokens: ids made so far, the end token not counted.
        dropped_rounds: oldest rounds left out because the prompt did not fit.
    """

    text: str
    finish_reason: FinishReason | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    dropped_rounds: int = 0


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
    processors: Sequence[ScoresProcessor] = (),
    step_lock: AbstractContextManager[Any] | None = None,
) -> Iterator[int | FinishReason]:
    """Token ids of the answer as they are made, then the finish reason.

    Every id made is delivered, the one that reaches a limit included; the end token is not.

    Args:
        model: the network, in eval mode.
        input_ids: prompt ids as the tokenizer makes them.
        config: limits and sampling.
        is_cancelled: asked before every step.
        processors: transformers' logits processors, called with ids [1, n] and scores [1, V].
        step_lock: held while the network runs, so that threads take turns step by step.

    Raises:
        PromptTooLongError: before any step.
        InvalidScoresError: the network produced NaN or infinity.
        OutOfMemoryError: the device has no room for the next step.
    """
    num_left = token_limit(len(input_ids), config, model.config.max_sequence_length)
    lock = step_lock or nullcontext()
    generator = new_generator(config.seed, model.device)
    end_id = model.config.eos_token_id if config.eos_token_id is None else config.eos_token_id
    # The answer may not end before there are so many ids.
    end_from = max(config.min_length, len(input_ids) + config.min_new_tokens)
    ids = torch.tensor([list(input_ids)], device=model.device)
    layout = model.prompt_layout(ids)
    cache = model.new_cache(len(input_ids) + min(num_left, 256))
    num_made = 0
    while True:
        if is_cancelled():
            yield "cancelled"
            return
        with lock, torch.inference_mode(), _memory_errors(ids.shape[1]):
            scores = model.decode(ids[:, -1:], layout, cache) if num_made else model.prefill(ids, layout, cache)
            require_finite(scores)
            for processor in processors:
                scores = processor(ids, scores)
            scores_V = penalize_repetition(scores[0].float(), ids[0], config.repetition_penalty)
            if ids.shape[1] < end_from:
                scores_V = forbid(scores_V, end_id)
            token_id = pick(scores_V, config, generator)
        if token_id == end_id:
            yield "stop"
            return
        num_made += 1
        yield token_id
        if num_made == num_left:
            yield "length"
            return
        ids = torch.cat((ids, ids.new_tensor([[token_id]])), dim=1)


@contextmanager
def _memory_errors(num_tokens: int) -> Iterator[None]:
    """A device's failure to allocate, as a sentence."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(
            f"Memory ran out on the device at {num_tokens} tokens of prompt and answer.",
            "Give a smaller --max-length, --quantize 8 or 4, or another --device.",
        ) from error


def stream_text(
    model: DecodableModel,
    tokenizer: Any,
    input_ids: Sequence[int],
    config: GenerationConfig,
    is_cancelled: Callable[[], bool] = never,
    processors: Sequence[ScoresProcessor] = (),
    step_lock: AbstractContextManager[Any] | None = None,
    dropped_rounds: int = 0,
) -> Iterator[Delta]:
    """The answer's text as deltas; joined they are the final text, and the last one has a finish reason.

    After an error in the middle, the text made so far is delivered with finish reason "error", then the error is
    raised. Arguments and errors as `stream_token_ids`.
    """
    detokenizer = IncrementalDetokenizer(tokenizer, stop_strings=config.stop)
    num_made = 0

    def delta(text: str, reason: FinishReason | None = None) -> Delta:
        return Delta(text, reason, len(input_ids), num_made, dropped_rounds)

    try:
        for item in stream_token_ids(model, input_ids, config, is_cancelled, processors, step_lock):
            if isinstance(item, str):
                rest = detokenizer.finish()
                # A stop string may be completed only by the text held back until now.
                yield delta(rest, "stop" if detokenizer.stopped else item)
                return
            num_made += 1
            text = detokenizer.push(item)
            if detokenizer.stopped:
                yield delta(text, "stop")
                return
            yield delta(text)
    except ChatGLMError:
        # What was made so far is not lost.
        if num_made:
            yield delta(detokenizer.finish(), "error")
        raise
