"""A decoder for the engine that costs nothing: its next token follows from the tokens alone, and it watches its use."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from chatglm.errors import ChatGLMError
from chatglm.models.chatglm.weights import answer_stages
from tests.scripted import tiny_spec

END = 0
VOCABULARY = 50
# In a prompt: the answer breaks at its third id, by an exception or by scores that are not numbers.
RAISES, IS_NAN = 48, 49
BREAKS_AT = 3


class BrokenStepError(ChatGLMError):
    """What `RAISES` raises."""


class Cache:
    """Ids instead of keys and values."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.ids: list[int] = []

    def append(self, ids: Sequence[int]) -> None:
        self.ids += ids
        assert len(self.ids) <= self.capacity, "more was stored than was reserved"


class CountingDecoder:
    """Answers end by themselves after some ids, differently for each prompt.

    Attributes:
        batches: how many requests took part in each decode step.
        live: caches that somebody still holds.
        on_step: called before each decode step.
    """

    device = torch.device("cpu")
    visibility = "prefix"
    position_bytes = 1
    prompt_tokens_at_once = 256

    def __init__(self, context: int = 1000, on_step: Callable[[], object] = lambda: None) -> None:
        self.spec = tiny_spec(VOCABULARY, context, (END,), clean_up=answer_stages)
        self.batches: list[int] = []
        self.prompts: list[int] = []
        self.most_positions = 0
        self.on_step = on_step
        self.live: weakref.WeakSet[Cache] = weakref.WeakSet()

    def cache_positions(self, num_tokens: int, *, uses_adapter: bool = True) -> int:
        return num_tokens

    def new_cache(self, capacity: int, *, uses_adapter: bool = True) -> Cache:
        cache = Cache(capacity)
        self.live.add(cache)
        self.most_positions = max(self.most_positions, sum(one.capacity for one in self.live))
        return cache

    def prompt_layout(self, input_ids: Tensor) -> Any:
        return input_ids.shape[1]

    def fill_caches(self, prompts: Sequence[Tensor], layouts: Sequence[Any], caches: Sequence[Cache]) -> None:
        self.prompts.append(sum(prompt.shape[1] for prompt in prompts))
        for prompt, layout, cache in zip(prompts, layouts, caches, strict=True):
            assert layout == prompt.shape[1]
            assert not cache.ids
            cache.append(prompt[0, :-1].tolist())

    def decode(self, input_ids: Tensor, layouts: Sequence[Any], caches: Sequence[Cache]) -> Tensor:
        assert len({id(cache) for cache in caches}) == len(caches) == len(layouts) == input_ids.shape[0]
        self.on_step()
        histories = [[*cache.ids, *ids] for cache, ids in zip(caches, input_ids.tolist(), strict=True)]
        scores = [self._scores(history, layout) for history, layout in zip(histories, layouts, strict=True)]
        for cache, ids in zip(caches, input_ids.tolist(), strict=True):
            cache.append(ids)
        self.batches.append(len(caches))
        return torch.stack(scores)

    def _scores(self, ids: list[int], num_prompt: int) -> Tensor:
        prompt, num_made = ids[:num_prompt], len(ids) - num_prompt
        if num_made == BREAKS_AT and RAISES in prompt:
            raise BrokenStepError("A broken step.")
        if num_made == BREAKS_AT and IS_NAN in prompt:
            return torch.full((VOCABULARY,), torch.nan)
        # Different for any two histories, and flat enough that a draw depends on its random numbers.
        scores = torch.sin(torch.arange(VOCABULARY) * (1 + sum(i * (n + 1) for n, i in enumerate(ids)) % 97)) * 2
        scores[RAISES:] = -50.0
        scores[END] = 50.0 if num_made == 5 + sum(prompt) % 30 else -50.0
        return scores


class LetterTokenizer:
    """Id n is one letter."""

    clean_up_tokenization_spaces = False
    leading_spaces = "keep"

    def surface(self, token_id: int) -> str:
        return "" if token_id == END else chr(ord("A") + token_id)


class FailingTokenizer(LetterTokenizer):
    """Cannot spell one of the ids."""

    def __init__(self, bad_id: int) -> None:
        self.bad_id = bad_id

    def surface(self, token_id: int) -> str:
        if token_id == self.bad_id:
            raise ValueError("no such letter")
        return super().surface(token_id)
