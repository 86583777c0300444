"""One request on its way through the engine: what it asked for, how far it is, what its caller has not seen yet.

Knows: its own ids, text, cache, wishes and end. Does not know other requests, threads or when it gets a turn.

    waiting --(slot, blocks)--> cache is None --(prompt pass)--> one id a step --> ended, once
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

import torch
from torch import Tensor

from chatglm.engine.outbox import Outbox
from chatglm.errors import InvalidRequestError
from chatglm.generation.config import GenerationConfig
from chatglm.generation.decode import AnswerText, never, token_limit
from chatglm.generation.deltas import Delta, FinishReason
from chatglm.generation.next_token import LogitsProcessor, NextToken


class Request:
    """Compared by identity.

    Attributes:
        prompt: int64 [1, n], on the CPU.
        num_allowed: ids that the answer may have.
        layout: where things lie in the prompt, as the network's family sees it.
        cache: what the network remembers of it; None before the prompt pass and after the end.
        uses_adapter: whether what was trained beside the network takes part.
        num_positions: cache positions it may need at most.
        tokens: its ids and random source.
        outbox: where its caller reads.
        finish_reason: why it ended; None while it has not.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        input_ids: Sequence[int],
        config: GenerationConfig,
        *,
        deadline: float | None = None,
        dropped_rounds: int = 0,
        uses_adapter: bool = True,
        processors: Sequence[LogitsProcessor] = (),
        is_cancelled: Callable[[], bool] = never,
    ) -> None:
        """Check everything that can be checked before the network is asked; arguments as `Engine.submit`.

        Raises:
            InvalidRequestError: the prompt or the parameters cannot be used.
        """
        if deadline is not None and not 0 <= deadline < math.inf:
            raise InvalidRequestError(f"deadline must be a number of seconds of at least 0, not {deadline!r}.")
        self.num_allowed = token_limit(len(input_ids), config, model.config.max_sequence_length)
        # On the host, whatever the network's device: to look at ids there would wait for the step under way.
        self.prompt: Tensor = torch.tensor([list(input_ids)])
        self.layout: Any = model.prompt_layout(self.prompt)
        self.cache: Any = None
        self.uses_adapter = uses_adapter
        num_tokens = len(input_ids) + self.num_allowed
        self.num_positions: int = model.cache_positions(num_tokens, uses_adapter=uses_adapter)
        self.tokens = NextToken(self.prompt, config, model.config.eos_token_id, processors)
        self.outbox = Outbox()
        self.finish_reason: FinishReason | None = None
        self._answer = AnswerText(tokenizer, config, len(input_ids), dropped_rounds)
        self._end_at = None if deadline is None else monotonic() + deadline
        self._is_cancelled = is_cancelled
        self._was_cancelled = False
        self._unseen: list[Delta] = []
        self._error: BaseException | None = None

    def cancel(self) -> None:
        """Ask for the end. From any thread; takes no lock, because a garbage collection may be what calls it."""
        self._was_cancelled = True

    def end_if_unwanted(self) -> None:
        """End it now if it was cancelled, or its time is over."""
        try:
            if self._was_cancelled or self._is_cancelled():
                self.end("cancelled")
            elif self._end_at is not None and monotonic() >= self._end_at:
                self.end("deadline")
        except Exception as error:
            self.fail(error)

    def take(self, scores: Tensor) -> None:
        """One step: choose an id from scores [1, V] and turn it into text; the answer may end with it."""
        self._go_on(self.tokens.take(scores))

    def take_id(self, token_id: int) -> None:
        """One step whose id was chosen elsewhere."""
        self._go_on(self.tokens.accept(token_id))

    def _go_on(self, token_id: int | None) -> None:
        if token_id is None:
            self.end("stop")
            return
        delta = self._answer.push(token_id)
        self._unseen.append(delta)
        if delta.finish_reason is not None:
            self._let_go(delta.finish_reason)
        elif self.tokens.num_made == self.num_allowed:
            self.end("length")

    def end(self, reason: FinishReason) -> None:
        """The answer is complete as it stands."""
        self._unseen.append(self._answer.finish(reason))
        self._let_go(self._unseen[-1].finish_reason or reason)

    def fail(self, error: BaseException) -> None:
        """End with an error; the text made so far is not lost."""
        _clear_frames(error)
        try:
            last = self._answer.finish("error")
        except Exception:  # the text is what failed
            last = Delta("", "error", self.prompt.shape[1], self._answer.num_tokens)
        self._unseen.append(last)
        self._error = error
        self._let_go("error")

    def publish(self) -> None:
        """Hand what is new to the caller."""
        if self._unseen:
            unseen, self._unseen = self._unseen, []
            self.outbox.put(unseen, self._error)

    def _let_go(self, reason: FinishReason) -> None:
        self.finish_reason = reason
        self.cache = None


def _clear_frames(error: BaseException) -> None:
    """Let go of what the functions held that an error has left: caches, as long as somebody keeps the error."""
    cause: BaseException | None = error
    while cause is not None:
        traceback.clear_frames(cause.__traceback__)
        cause = cause.__cause__ or cause.__context__
