"""What one step does with the network: the prompts of newcomers in one call, the next ids of all in another.

Knows: which calls a network offers, and that an error belongs to one request. Does not know slots, queues or threads.
Shapes: B requests, n ids of a prompt, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from chatglm.engine.request import Request
from chatglm.generation.decode import DecodableModel, memory_errors


class BatchModel(DecodableModel, Protocol):
    """What a family's network offers to the engine.

    Attributes:
        visibility: "prefix" if every id of a prompt sees all of it, "causal" if only what is before it. Whole prompts
            are right for both; only a causal one could be cut or share its beginning with another.
        position_bytes: bytes that a cache takes for one position.
        prompt_tokens_at_once: ids of several prompts that are taken in faster by one call than one prompt by one.
    """

    visibility: str
    position_bytes: int
    prompt_tokens_at_once: int

    def new_cache(self, capacity: int, *, uses_adapter: bool = True) -> Any: ...

    def cache_positions(self, num_tokens: int, *, uses_adapter: bool = True) -> int:
        """Positions that a cache for so many tokens holds, those that belong to the network itself included."""
        ...

    def fill_caches(self, prompts: Sequence[Tensor], layouts: Sequence[Any], caches: Sequence[Any]) -> None:
        """Take in all but the last id of each prompt [1, n], each into its own empty cache.

        After an error the caches are not used again.
        """
        ...

    def decode_together(self, input_ids: Tensor, layouts: Sequence[Any], caches: Sequence[Any]) -> Tensor:
        """Scores [B, V] after one more id [B, 1] of each request. An error leaves all caches as they were."""
        ...


class Runner:
    """Runs requests on a network, in the thread that calls it."""

    def __init__(self, model: BatchModel) -> None:
        self._model = model

    @property
    def prompt_tokens_at_once(self) -> int:
        """Ids of several prompts that are given to one call of `prefill`."""
        return self._model.prompt_tokens_at_once

    def warm_up(self) -> None:
        """Nothing: there is nothing to prepare."""

    def prefill(self, requests: Sequence[Request]) -> None:
        """Take in the prompts; a request whose prompt cannot be taken in ends."""
        one_by_one(self._fill, requests)

    def decode(self, requests: Sequence[Request]) -> None:
        """One more id for each; a request whose step fails ends, the others go on."""
        one_by_one(self._decode, requests)

    def _decode(self, requests: Sequence[Request]) -> None:
        scores = self._scores(requests)
        for request, row in zip(requests, scores.split(1), strict=True):
            self._take(request, row)

    def _take(self, request: Request, scores: Tensor) -> None:
        try:
            with torch.inference_mode():
                request.take(scores)
        except Exception as error:
            request.fail(error)

    def _fill(self, requests: Sequence[Request]) -> None:
        prompts = [request.prompt.to(self._model.device) for request in requests]
        with torch.inference_mode(), memory_errors(sum(prompt.shape[1] for prompt in prompts)):
            caches = [
                self._model.new_cache(request.num_positions, uses_adapter=request.uses_adapter) for request in requests
            ]
            self._model.fill_caches(prompts, [request.layout for request in requests], caches)
        for request, cache in zip(requests, caches, strict=True):
            request.cache = cache

    def _scores(self, requests: Sequence[Request]) -> Tensor:
        last = torch.cat([request.tokens.ids[:, -1:] for request in requests]).to(self._model.device)
        layouts = [request.layout for request in requests]
        caches = [request.cache for request in requests]
        with torch.inference_mode(), memory_errors(max(request.tokens.ids.shape[1] for request in requests)):
            if len(requests) == 1:
                scores = self._model.decode(last, layouts[0], caches[0])
            else:
                scores = self._model.decode_together(last, layouts, caches)
            # Ids are chosen on the host, so that a seed draws the same ones whatever the device.
            return scores.cpu()


def one_by_one(work: Callable[[Sequence[Request]], None], requests: Sequence[Request]) -> None:
    """Do it for all requests together or, if that fails, for each alone; one that fails alone ends."""
    if not _fails(work, requests):
        return
    # The error of all is gone by now, and with it what its frames held.
    for request in requests if len(requests) > 1 else ():
        one_by_one(work, [request])


def _fails(work: Callable[[Sequence[Request]], None], requests: Sequence[Request]) -> bool:
    try:
        work(requests)
    except Exception as error:
        if len(requests) == 1:
            requests[0].fail(error)
        return True
    return False


def next_prompts(requests: Sequence[Request], num_tokens_at_once: int) -> list[Request]:
    """The first requests without a cache whose prompts go into one call, so that nobody waits long for it.

    So many that they have no more ids than that together, but at least one if there is one.
    """
    chosen: list[Request] = []
    num_tokens = 0
    for request in requests:
        if request.cache is None:
            num_tokens += request.prompt.shape[1]
            if chosen and num_tokens > num_tokens_at_once:
                break
            chosen.append(request)
    return chosen
