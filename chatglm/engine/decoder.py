"""Prompts and decode steps of many requests as single calls of one network: positions of one row (chatglm.nn.packed).
Shapes: B requests, n prompt tokens, T positions of a call, R position rows, C model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from chatglm.model_spec import ModelSpec
from chatglm.nn.batch_invariance import rows_for_invariance
from chatglm.nn.kv_cache import KVCache
from chatglm.nn.lora import Rows, rows_using, updates_for
from chatglm.nn.packed import Packed, PackedPrompts, PackedSteps
from chatglm.nn.prefix_encoder import PrefixEncoder

PROMPT_TOKENS_AT_ONCE = 256
# Of a prompt that only looks back, so that masks and what lies between the layers do not grow with its square.
CAUSAL_TOKENS_AT_ONCE = 512


class PromptLayout(Protocol):
    """Layout of one prompt: the first `num_bidirectional` columns all see each other, the others only earlier ones."""

    @property
    def num_bidirectional(self) -> int: ...

    def positions(self, start: int, stop: int) -> Tensor:
        """Position ids of columns start..stop-1: int64 [1, R, T], or [1, T] with one position row."""
        ...

    def answer_positions(self, column: int) -> list[int]:
        """Position ids of one column behind the bidirectional ones, R numbers."""
        ...


class Network(Protocol):
    """What a family's network offers to the engine; a plain `nn.Module`."""

    spec: ModelSpec
    config: Any
    lm_head: nn.Module
    num_ranks: int

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def prefix_encoder(self) -> PrefixEncoder | None: ...

    def find_layout(self, input_ids_BT: Tensor) -> PromptLayout: ...

    def forward_hidden(
        self, input_ids_BT: Tensor, position_ids: Tensor, visible: Tensor | None, cache: Any
    ) -> Tensor: ...

    def cache_dtype(self) -> torch.dtype | None: ...


class BatchDecoder:
    """A network as the engine runs it."""

    def __init__(self, network: Network) -> None:
        self.network = network

    @property
    def spec(self) -> ModelSpec:
        return self.network.spec

    @property
    def device(self) -> torch.device:
        return self.network.device

    @property
    def position_bytes(self) -> int:
        """Bytes of one position in a cache: keys and values of every layer."""
        stored, spec = self.network.cache_dtype() or self.network.dtype, self.spec
        return 2 * spec.num_layers * spec.num_kv_heads * spec.head_width // self.network.num_ranks * stored.itemsize

    @property
    def prompt_tokens_at_once(self) -> int:
        """Tokens of several prompts per call; packed weights take one prompt: many rows round differently."""
        return 0 if self.network.config.quantization_bit else PROMPT_TOKENS_AT_ONCE

    def cache_positions(self, num_tokens: int, *, uses_adapter: bool = True) -> int:
        """Positions in a cache of so many tokens: theirs, and those of a trained prefix."""
        return num_tokens + ((self.network.config.pre_seq_len or 0) if uses_adapter else 0)

    def new_cache(self, capacity: int, *, uses_adapter: bool = True) -> KVCache:
        """An empty cache with room for `capacity` tokens (it grows beyond that), with or without the trained prefix."""
        room = self.cache_positions(capacity, uses_adapter=uses_adapter)
        return KVCache(self.spec.num_layers, room, self.network.cache_dtype(), uses_adapter=uses_adapter)

    def prompt_layout(self, input_ids_1n: Tensor) -> PromptLayout:
        """The layout of a prompt; raises InvalidRequestError if it is empty or an id is no token (fatal on a GPU)."""
        check_token_ids(input_ids_1n, self.spec.vocab_size)
        return self.network.find_layout(input_ids_1n)

    def prefill(self, prompt_1n: Tensor, layout: PromptLayout, cache: KVCache) -> Tensor:
        """Logits [1, V] after one whole prompt."""
        self.fill_caches([prompt_1n], [layout], [cache])
        return self.decode(prompt_1n[:, -1:], [layout], [cache])

    def fill_caches(
        self, prompts: Sequence[Tensor], layouts: Sequence[PromptLayout], caches: Sequence[KVCache]
    ) -> None:
        """Prefill all but the last token of each prompt [1, n]: bidirectional, then causal.

        A cache is empty or holds the first tokens of its prompt, which then are none of the bidirectional ones.
        """
        self._store_prefix([cache for cache in caches if cache.get_seq_length() == 0])
        starts = [self._num_tokens(cache) for cache in caches]
        lengths = [prompt.shape[1] - 1 for prompt in prompts]
        bidirectional = [min(layout.num_bidirectional, length) for layout, length in zip(layouts, lengths, strict=True)]
        self._fill(prompts, layouts, caches, starts, bidirectional, causal=False)
        starts = [max(pair) for pair in zip(starts, bidirectional, strict=True)]
        while starts != lengths:
            stops = [min(start + CAUSAL_TOKENS_AT_ONCE, n) for start, n in zip(starts, lengths, strict=True)]
            self._fill(prompts, layouts, caches, starts, stops, causal=True)
            starts = stops

    def decode(self, input_ids_B1: Tensor, layouts: Sequence[PromptLayout], caches: Sequence[KVCache]) -> Tensor:
        """Logits [B, V] after one more token of each request. An error leaves all caches as they were."""
        columns = [self._num_tokens(cache) for cache in caches]
        positions = [layout.answer_positions(column) for layout, column in zip(layouts, columns, strict=True)]
        positions_RB = torch.tensor(positions, device=input_ids_B1.device).T
        steps = PackedSteps(caches)
        with updates_for(self._rows_using(caches, [1] * len(caches))):
            hidden_1TC = self._run(input_ids_B1.T, positions_RB[None] if len(positions_RB) > 1 else positions_RB, steps)
            logits = self.network.lm_head(hidden_1TC[0])
        steps.commit(self.spec.num_layers)
        return logits[: len(caches)]

    def _num_tokens(self, cache: KVCache) -> int:
        return cache.get_seq_length() - self.cache_positions(0, uses_adapter=cache.uses_adapter)

    def _store_prefix(self, caches: Sequence[KVCache]) -> None:
        encoder = self.network.prefix_encoder
        if encoder is not None:
            for layer_idx, (key, value) in enumerate(encoder(1, self.network.dtype)):
                for cache in caches:
                    if cache.uses_adapter:
                        cache.update(key, value, layer_idx)

    def _fill(
        self,
        prompts: Sequence[Tensor],
        layouts: Sequence[PromptLayout],
        caches: Sequence[KVCache],
        starts: Sequence[int],
        stops: Sequence[int],
        *,
        causal: bool,
    ) -> None:
        rows = zip(prompts, layouts, caches, starts, stops, strict=True)
        filled = [row for row in rows if row[4] > row[3]]
        if not filled:
            return
        ids = torch.cat([prompt[:, start:stop] for prompt, _, _, start, stop in filled], dim=-1)
        positions = torch.cat([layout.positions(start, stop) for _, layout, _, start, stop in filled], dim=-1)
        kept, lengths = [row[2] for row in filled], [stop - start for *_, start, stop in filled]
        with updates_for(self._rows_using(kept, lengths)):
            self._run(ids, positions.to(ids.device), PackedPrompts(kept, lengths, causal=causal))

    def _rows_using(self, caches: Sequence[KVCache], lengths: Sequence[int]) -> Rows:
        """Which positions of a call of `_run` use a LoRA update."""
        uses = [cache.uses_adapter for cache in caches]
        return rows_using(uses, lengths, max(sum(lengths), self._least_rows), self.network.device)

    @property
    def _least_rows(self) -> int:
        """Rows from which each result is bitwise the same in any batch; 2 if quantized (only the head is torch's)."""
        rows = rows_for_invariance(self.network.dtype, self.network.device) or 1
        return min(rows, 2) if self.network.config.quantization_bit else rows

    def _run(self, ids_1T: Tensor, positions: Tensor, packed: Packed) -> Tensor:
        """Hidden states [1, T, C] of packed positions; T is raised to `_least_rows` with padding rows."""
        missing = self._least_rows - ids_1T.shape[1]
        if missing > 0:
            ids_1T, positions = F.pad(ids_1T, (0, missing)), F.pad(positions, (0, missing))
        return self.network.forward_hidden(ids_1T, positions, None, packed)


def check_token_ids(input_ids: Tensor, vocab_size: int) -> None:
    """Raise InvalidRequestError for a number that is no token of the vocabulary."""
    from chatglm.errors import InvalidRequestError

    if not bool(((input_ids >= 0) & (input_ids < vocab_size)).all()):
        raise InvalidRequestError(
            f"input_ids hold a number that is no token of this model, which has 0 to {vocab_size - 1}.",
            "Make input_ids with the model's tokenizer.",
        )
