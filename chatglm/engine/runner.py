"""Steps of requests with caches of their own: prompts in one call, the next token of all in another.
Shapes: B requests, n tokens of a prompt, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from chatglm.engine.request import Request, RequestDecoder
from chatglm.errors import OutOfMemoryError
from chatglm.generation.sampling import NO_TOKEN, SamplingRows, mode_for, sample


class Decoder(RequestDecoder, Protocol):
    """What a runner asks of `chatglm.engine.decoder.BatchDecoder`."""

    @property
    def device(self) -> torch.device: ...

    @property
    def prompt_tokens_at_once(self) -> int: ...

    def new_cache(self, capacity: int, *, uses_adapter: bool = True) -> Any: ...

    def fill_caches(self, prompts: Sequence[Tensor], layouts: Sequence[Any], caches: Sequence[Any]) -> None: ...

    def decode(self, input_ids_B1: Tensor, layouts: Sequence[Any], caches: Sequence[Any]) -> Tensor: ...


class Runner:
    """Runs requests on a network, in the thread that calls it."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder

    @property
    def prompt_tokens_at_once(self) -> int:
        return self._decoder.prompt_tokens_at_once

    def warm_up(self) -> None:
        """Nothing to prepare."""

    def prefill(self, requests: Sequence[Request]) -> None:
        """Take in the prompts; a request whose prompt cannot be taken in ends."""
        one_by_one(self._fill, requests)

    def decode(self, requests: Sequence[Request]) -> None:
        """One more token for each; a request whose step fails ends, the others go on."""
        one_by_one(self._decode, requests)

    def _fill(self, requests: Sequence[Request]) -> None:
        prompts = [request.prompt.to(self._decoder.device) for request in requests]
        with torch.inference_mode(), memory_errors(sum(prompt.shape[1] for prompt in prompts)):
            caches = [
                self._decoder.new_cache(request.num_positions, uses_adapter=request.uses_adapter)
                for request in requests
            ]
            for request, cache in zip(requests, caches, strict=True):
                if request.reused is not None:
                    begin_with(request, cache, self._decoder)
            self._decoder.fill_caches(prompts, [request.layout for request in requests], caches)
        for request, cache in zip(requests, caches, strict=True):
            request.cache = cache

    def _decode(self, requests: Sequence[Request]) -> None:
        # No cache in this frame: the error of a request that ends here may keep it.
        sampled = self._sample(requests, self._logits(requests))
        for request, token_id in zip(requests, sampled, strict=True):
            if request.finish_reason is None:
                request.accept(token_id)

    def _logits(self, requests: Sequence[Request]) -> Tensor:
        last = torch.tensor([[request.token_ids[-1]] for request in requests], device=self._decoder.device)
        layouts, caches = [request.layout for request in requests], [request.cache for request in requests]
        with torch.inference_mode(), memory_errors(max(len(request.token_ids) for request in requests)):
            return self._decoder.decode(last, layouts, caches).cpu()

    @torch.inference_mode()
    def _sample(self, requests: Sequence[Request], logits_BV: Tensor) -> list[int]:
        for number, request in enumerate(requests):
            if request.processors:
                logits_BV[number] = _processed(request, logits_BV[number : number + 1])
        rows = sampling_rows(requests, logits_BV.shape[1])
        return sample(logits_BV, rows, mode_for(request.config for request in requests)).tolist()


def sampling_rows(requests: Sequence[Request], vocab_size: int) -> SamplingRows:
    """Sampling parameters of the next token of each request, on the CPU."""
    configs = [request.config for request in requests]
    most_eos = max(len(request.eos_ids) for request in requests)
    eos_ids = [[*request.eos_ids, *[NO_TOKEN] * (most_eos - len(request.eos_ids))] for request in requests]
    allowed = [len(request.token_ids) >= request.min_length for request in requests]
    has_penalty = any(config.repetition_penalty != 1 for config in configs)
    return SamplingRows(
        seeds=torch.tensor([request.seed for request in requests]),
        counts=torch.tensor([request.num_generated for request in requests]),
        temperatures=torch.tensor([0.0 if config.is_greedy else config.temperature for config in configs]),
        top_ks=torch.tensor([min(config.top_k, NO_TOKEN) for config in configs]),
        top_ps=torch.tensor([float(config.top_p) for config in configs]),
        eos_ids=torch.tensor(eos_ids).clamp(max=NO_TOKEN),
        eos_allowed=None if all(allowed) else torch.tensor(allowed),
        penalties=torch.tensor([float(config.repetition_penalty) for config in configs]),
        seen=torch.stack([_seen(request, vocab_size) for request in requests]) if has_penalty else None,
    )


def _seen(request: Request, vocab_size: int) -> Tensor:
    seen_V = torch.zeros(vocab_size, dtype=torch.bool)
    if request.config.repetition_penalty != 1:
        seen_V[torch.tensor(request.token_ids)] = True
    return seen_V


def _processed(request: Request, logits_1V: Tensor) -> Tensor:
    """Logits [V] after the request's own processors, which forbid tokens by minus infinity; one that raises ends the
    request.
    """
    ids = torch.tensor([request.token_ids])
    try:
        for processor in request.processors:
            logits_1V = processor(ids, logits_1V)
    except Exception as error:
        request.fail(error)
    return logits_1V[0].clamp(min=torch.finfo(logits_1V.dtype).min)


def begin_with(request: Request, cache: Any, decoder: RequestDecoder) -> None:
    """Copy what another request has left for this one into its empty cache."""
    assert request.reused is not None
    entry, request.num_reused = request.reused
    cache.copy_from(entry.cache, decoder.cache_positions(request.num_reused, uses_adapter=request.uses_adapter))


@contextmanager
def memory_errors(num_tokens: int) -> Iterator[None]:
    """A device's failure to allocate, as our error."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(
            f"Memory ran out on the device at {num_tokens} tokens of prompt and answer.",
            "Give a smaller --max-length, --quantize 8 or 4, or another --device.",
        ) from error


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
    """The first requests without a cache whose prompts go into one call: no more tokens than that, but at least one."""
    taken: list[Request] = []
    num_tokens = 0
    for request in requests:
        if request.cache is None:
            num_tokens += request.prompt.shape[1]
            if taken and num_tokens > num_tokens_at_once:
                break
            taken.append(request)
    return taken
