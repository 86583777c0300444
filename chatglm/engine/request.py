"""One request: waiting -> (slot, blocks) -> prompt pass -> one token a step -> finished, once."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, Protocol

import torch
from torch import Tensor

from chatglm.engine.outbox import Outbox
from chatglm.errors import InvalidRequestError, PromptTooLongError
from chatglm.generation.config import GenerationConfig
from chatglm.generation.deltas import Delta, FinishReason
from chatglm.generation.detokenizer import IncrementalDetokenizer
from chatglm.generation.sampling import INVALID, LogitsProcessor, invalid_logits
from chatglm.model_spec import ModelSpec, TextStage


def never() -> bool:
    """The cancel flag of a request that is never cancelled."""
    return False


def token_limit(num_prompt: int, config: GenerationConfig, context_limit: int) -> int:
    """Tokens that an answer may have; raises PromptTooLongError if the prompt reaches `max_length` or the context."""
    limit = min(config.max_length, context_limit)
    if num_prompt >= limit:
        raise PromptTooLongError(
            f"The prompt has {num_prompt} tokens, but prompt and answer together may have {limit}.",
            "Shorten it or raise max_length." if limit < context_limit else "Shorten it.",
        )
    return min(limit - num_prompt, config.max_new_tokens or limit)


class RequestDecoder(Protocol):
    """What a request asks of the decoder that will run it; see `chatglm.engine.decoder.BatchDecoder`."""

    @property
    def spec(self) -> ModelSpec: ...

    def prompt_layout(self, input_ids_1n: Tensor) -> Any: ...

    def cache_positions(self, num_tokens: int, *, uses_adapter: bool = True) -> int: ...


class Request:
    """Compared by identity. `prompt` is int64 [1, n] on the CPU; `cache` is None before the prompt pass and at the end.

    `num_positions`: cache positions needed at most. `token_ids`: prompt and answer without an end token. `num_allowed`
    counts tokens of the answer, `min_length` those of prompt and answer. `finish_reason` is None until the end.
    """

    def __init__(
        self,
        decoder: RequestDecoder,
        tokenizer: Any,
        input_ids: Sequence[int],
        config: GenerationConfig,
        *,
        deadline: float | None = None,
        answer_start: str = "",
        dropped_rounds: int = 0,
        uses_adapter: bool = True,
        processors: Sequence[LogitsProcessor] = (),
        is_cancelled: Callable[[], bool] = never,
        clean_up: Callable[[], list[TextStage]] | None = None,
    ) -> None:
        """Check all that needs no network; arguments as `Engine.submit`. Raises InvalidRequestError."""
        if deadline is not None and not 0 <= deadline < math.inf:
            raise InvalidRequestError(f"deadline must be a number of seconds of at least 0, not {deadline!r}.")
        spec = decoder.spec
        start_ids = spec.encode_answer(tokenizer, answer_start) if answer_start else []
        input_ids = [*input_ids, *start_ids]
        self.config = config
        self.num_allowed = token_limit(len(input_ids), config, spec.context_limit)
        # On the host, whatever the network's device: to look at ids there would wait for the step under way.
        self.prompt: Tensor = torch.tensor([input_ids])
        self.layout: Any = decoder.prompt_layout(self.prompt)
        self.cache: Any = None
        self.reused: tuple[Any, int] | None = None  # a cache to begin with, and how many of its tokens
        self.num_reused = 0
        self.uses_adapter = uses_adapter
        num_tokens = len(input_ids) + self.num_allowed
        self.num_positions = decoder.cache_positions(num_tokens, uses_adapter=uses_adapter)
        self.token_ids = list(input_ids)
        self.eos_ids = spec.eos_ids if config.eos_token_id is None else (config.eos_token_id,)
        self.min_length = max(config.min_length, len(input_ids) + config.min_new_tokens)
        # Seeds are whole numbers of any size; a request without one has a number from torch's own source.
        self.seed = int(torch.randint(2**62, ())) if config.seed is None else config.seed & (2**63 - 1)
        self.processors = processors
        self.outbox = Outbox()
        self.finish_reason: FinishReason | None = None
        self.error: BaseException | None = None
        self._detokenizer = IncrementalDetokenizer(tokenizer, config.stop, (clean_up or spec.clean_up)())
        self._detokenizer.resume(start_ids, answer_start)
        self._dropped_rounds = dropped_rounds
        self._end_at = None if deadline is None else monotonic() + deadline
        self._is_cancelled = is_cancelled
        self._was_cancelled = False
        self._unpublished: list[Delta] = []

    @property
    def num_generated(self) -> int:
        return len(self.token_ids) - self.prompt.shape[1]

    def cancel(self) -> None:
        """Ask for the end. From any thread; takes no lock, because a garbage collection may be what calls it."""
        self._was_cancelled = True

    def end_if_unwanted(self) -> None:
        try:
            if self._was_cancelled or self._is_cancelled():
                self.end("cancelled")
            elif self._end_at is not None and monotonic() >= self._end_at:
                self.end("deadline")
        except Exception as error:
            self.fail(error)

    def accept(self, token_id: int) -> None:
        """One step: turn the sampled token into text. The answer may end with it; errors end the request."""
        try:
            if token_id == INVALID:
                raise invalid_logits()
            if token_id in self.eos_ids:
                self.end("stop")
                return
            self.token_ids.append(token_id)
            text = self._detokenizer.push(token_id)
            self._unpublished.append(self._delta(text, "stop" if self._detokenizer.stopped else None))
            if self._detokenizer.stopped:
                self._finish("stop")
            elif self.num_generated == self.num_allowed:
                self.end("length")
        except Exception as error:
            self.fail(error)

    def end(self, reason: FinishReason) -> None:
        text = self._detokenizer.finish()
        reason = "stop" if self._detokenizer.stopped else reason  # held-back text may complete a stop string
        self._unpublished.append(self._delta(text, reason))
        self._finish(reason)

    def fail(self, error: BaseException) -> None:
        """End with an error; the text generated so far is not lost."""
        _clear_frames(error)
        try:
            text = self._detokenizer.finish()
        except Exception:  # the text is what failed
            text = ""
        self._unpublished.append(self._delta(text, "error"))
        self.error = error
        self._finish("error")

    def take_deltas(self) -> list[Delta]:
        deltas, self._unpublished = self._unpublished, []
        return deltas

    def publish(self) -> None:
        if self._unpublished:
            self.outbox.put(self.take_deltas(), self.error)

    def _delta(self, text: str, reason: FinishReason | None) -> Delta:
        return Delta(
            text, reason, self.prompt.shape[1], self.num_generated, self._dropped_rounds, cached_tokens=self.num_reused
        )

    def _finish(self, reason: FinishReason) -> None:
        self.finish_reason = reason
        if reason == "error":
            self.cache = None


def _clear_frames(error: BaseException) -> None:
    """Let go of what the functions held that an error has left: caches, as long as somebody keeps the error."""
    cause: BaseException | None = error
    while cause is not None:
        traceback.clear_frames(cause.__traceback__)
        cause = cause.__cause__ or cause.__context__
