"""What the ChatGLM-6B network offers to many requests at once: prompts and steps packed into one call.

Knows: that the context of a prompt is one pass without a mask, and where positions of different requests lie. Does not
know who runs, or how ids are chosen.
Shapes: B requests, n ids of a prompt, T positions of a call, C model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from chatglm.models.chatglm.config import ChatGLMConfig
from chatglm.models.chatglm.fused import cache_dtype
from chatglm.models.chatglm.network import ChatGLMModel
from chatglm.models.chatglm.positions import Layout, causal_after, join_layouts
from chatglm.nn.batch_invariance import rows_for_invariance
from chatglm.nn.kv_cache import KVCache
from chatglm.nn.lora import Rows, rows_using, updates_for
from chatglm.nn.packed import Packed, PackedPrompts, PackedSteps

PROMPT_TOKENS_AT_ONCE = 256


class BatchMixin:
    """The calls of `chatglm.engine.runner.BatchModel`, for a network with its output head."""

    config: ChatGLMConfig
    transformer: ChatGLMModel
    lm_head: nn.Module
    num_ranks: int

    @property
    def position_bytes(self) -> int:
        """Bytes of one position in a cache: keys and values of every layer."""
        stored = cache_dtype(self.transformer) or self._compute_dtype
        return 2 * self.config.num_layers * self.config.hidden_size // self.num_ranks * stored.itemsize

    @property
    def prompt_tokens_at_once(self) -> int:
        """Short prompts gain by sharing the reading of the weights. Packed weights are soon read, and their kernels
        round differently for many rows: there each prompt has a call of its own."""
        return 0 if self.config.quantization_bit else PROMPT_TOKENS_AT_ONCE

    @property
    def _compute_dtype(self) -> torch.dtype:
        return self.transformer.final_layernorm.weight.dtype

    @property
    def _least_rows(self) -> int:
        """A call is padded to so many rows; of a quantized network only the head is measured, so two suffice."""
        rows = rows_for_invariance(self._compute_dtype, self.transformer.final_layernorm.weight.device) or 1
        return min(rows, 2) if self.config.quantization_bit else rows

    def cache_positions(self, num_tokens: int, *, uses_adapter: bool = True) -> int:
        """Positions in a cache of so many tokens: theirs, and those of a trained prefix."""
        return num_tokens + ((self.config.pre_seq_len or 0) if uses_adapter else 0)

    def fill_caches(self, prompts: Sequence[Tensor], layouts: Sequence[Layout], caches: Sequence[KVCache]) -> None:
        """Take in all but the last id of each prompt [1, n], each into its own empty cache.

        The contexts of all are one pass without a mask; an answer's start behind `<sop>` is a causal one of its own.
        """
        self._store_prefix(caches)
        self._fill_contexts(prompts, layouts, caches)
        for prompt, layout, cache in zip(prompts, layouts, caches, strict=True):
            start, stop = int(layout.sop[0]), prompt.shape[1] - 1
            if stop > start:
                positions = layout.positions(start, stop).to(prompt.device)
                with updates_for(None if cache.uses_adapter else False):
                    self.transformer(prompt[:, start:stop], positions, causal_after(start, positions), cache)

    def decode_together(self, input_ids: Tensor, layouts: Sequence[Layout], caches: Sequence[KVCache]) -> Tensor:
        """Scores [B, V] after one more id [B, 1] of each request. An error leaves all caches as they were."""
        columns = [
            [cache.get_seq_length() - self.cache_positions(0, uses_adapter=cache.uses_adapter)] for cache in caches
        ]
        layout = join_layouts(layouts)
        positions = layout.positions_at(torch.tensor(columns, device=layout.sop.device)).to(input_ids.device)
        steps = PackedSteps(caches)
        # Requests become positions of one row: [B, 2, 1] -> [1, 2, B], or [B, 1] -> [1, B].
        with updates_for(self._rows_using(caches, [1] * len(caches))):
            hidden_1TC = self._run(input_ids.T, positions.transpose(0, -1), steps)
            scores = self.lm_head(hidden_1TC[0])
        steps.commit(self.config.num_layers)
        return scores[: len(caches)]

    def _store_prefix(self, caches: Sequence[KVCache]) -> None:
        """Put the trained prefix into empty caches, as the network itself does for one that is not packed."""
        if self.transformer.prefix_encoder is not None:
            for layer_idx, (key, value) in enumerate(self.transformer.prefix_encoder(1, self._compute_dtype)):
                for cache in caches:
                    if cache.uses_adapter:
                        cache.update(key, value, layer_idx)

    def _fill_contexts(self, prompts: Sequence[Tensor], layouts: Sequence[Layout], caches: Sequence[KVCache]) -> None:
        lengths = [int(layout.sop[0]) for layout in layouts]
        ids = [prompt[:, :length] for prompt, length in zip(prompts, lengths, strict=True)]
        positions = [layout.positions(0, length) for layout, length in zip(layouts, lengths, strict=True)]
        with updates_for(self._rows_using(caches, lengths)):
            self._run(torch.cat(ids, -1), torch.cat(positions, -1).to(ids[0].device), PackedPrompts(caches, lengths))

    def _rows_using(self, caches: Sequence[KVCache], lengths: Sequence[int]) -> Rows:
        """Which positions of a call of `_run` use a LoRA update."""
        uses = [cache.uses_adapter for cache in caches]
        device = self.transformer.final_layernorm.weight.device
        return rows_using(uses, lengths, max(sum(lengths), self._least_rows), device)

    def _run(self, ids_1T: Tensor, positions: Tensor, packed: Packed) -> Tensor:
        """Hidden states [1, T, C] of packed positions; T is raised to the number below which rows differ."""
        missing = self._least_rows - ids_1T.shape[1]
        if missing > 0:
            ids_1T, positions = F.pad(ids_1T, (0, missing)), F.pad(positions, (0, missing))
        return self.transformer(ids_1T, positions, None, packed)
