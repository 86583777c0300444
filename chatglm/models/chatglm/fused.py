"""Attention and MLP of a block by CPU kernels: float32, no gradients, no mask, 16-bit caches; else the plain layers.
Shapes: C model width, T positions of the call.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from chatglm import kernels
from chatglm.kernels.cpu.cpu_attention import MAX_WIDTH
from chatglm.models.chatglm.network import GLU, Cache, ChatGLMModel, Pair, SelfAttention
from chatglm.nn.kv_cache import KVCache
from chatglm.nn.packed import PackedPrompts, PackedSteps

STORAGE_DTYPE = torch.float16
# Positions of a prompt that pass through an MLP at once. What lies in between is four times as wide as the network: of
# 512 positions of ChatGLM-6B over 32 MB, which glibc asks of the system anew each time, page by page: a sixth of the
# MLP's time. Slices much smaller unpack the weights too often.
MLP_TOKENS = 256


class FusedSelfAttention(SelfAttention):
    """A SelfAttention whose prompts and decode steps are kernels between two products; tensor names are unchanged."""

    def __init__(self, plain: SelfAttention) -> None:
        nn.Module.__init__(self)
        self.layer_id, self.head_width, self.num_parts = plain.layer_id, plain.head_width, plain.num_parts
        self.query_key_value, self.dense = plain.query_key_value, plain.dense
        self.train(plain.training)

    def forward(
        self,
        x_BTC: Tensor,
        tables: Pair,
        visible: Tensor | None,
        cache: Cache | None,
        prefix: Pair | None,
        probabilities: list[Tensor] | None,
    ) -> Tensor:
        is_bare = visible is None and prefix is None and probabilities is None
        if is_bare and (caches := self._steps(x_BTC, cache)):
            return self.dense(self._attend_steps(x_BTC, tables, caches, isinstance(cache, PackedSteps)))
        if is_bare and (prompts := self._prompts(x_BTC, cache)):
            return self.dense(self._attend_prompts(x_BTC, tables, prompts))
        return super().forward(x_BTC, tables, visible, cache, prefix, probabilities)

    def rotated(self, x_BTC: Tensor, tables: Pair) -> tuple[Tensor, Tensor, Tensor]:
        if not _is_plain_inference(x_BTC) or tables[0].shape[0] != x_BTC.shape[0]:
            return super().rotated(x_BTC, tables)
        query, key, value = self.heads(kernels.rotate_(self.query_key_value(x_BTC), tables, self.num_parts))
        return query, key, value

    def _attend_prompts(self, x_BTC: Tensor, tables: Pair, prompts: Sequence[tuple[KVCache, int]]) -> Tensor:
        qkv = kernels.rotate_(self.query_key_value(x_BTC), tables, self.num_parts)
        _, key, value = self.heads(qkv)
        mixed, stop = [], 0
        for cache, length in prompts:
            start, stop = stop, stop + length
            cache.append(key[:, :, start:stop], value[:, :, start:stop], self.layer_id)
            mixed.append(kernels.attend_prompt(qkv[:, start:stop], *cache.storage(self.layer_id)))
        return mixed[0] if len(mixed) == 1 else torch.cat(mixed, dim=1)

    def _attend_steps(self, x_BTC: Tensor, tables: Pair, caches: Sequence[KVCache], is_packed: bool) -> Tensor:
        qkv = self.query_key_value(x_BTC)
        if not is_packed:
            mixed_1TC = self._attend_one(qkv, tables, caches[0])
            caches[0].append_one(self.layer_id)
            return mixed_1TC
        cos, sin = tables
        parts = [(qkv[:, n], (cos[:, :, n], sin[:, :, n]), cache) for n, cache in enumerate(caches)]
        return torch.cat([self._attend_one(*part) for part in parts], dim=1)

    def _attend_one(self, qkv: Tensor, tables: Pair, cache: KVCache) -> Tensor:
        keys, values, length = cache.room_for_one(self.layer_id)
        return kernels.attend_one(qkv, tables, keys, values, length, self.num_parts)

    def _prompts(self, x_BTC: Tensor, cache: Cache | None) -> Sequence[tuple[KVCache, int]]:
        """The cache and the number of positions of each prompt of the call, if the kernels take them."""
        prompts: list[tuple[KVCache, int]] = []
        if isinstance(cache, PackedPrompts) and not cache.causal:
            prompts = list(zip(cache.caches, cache.lengths, strict=True))
        elif isinstance(cache, KVCache):
            prompts = [(cache, x_BTC.shape[1])]
        is_taken = (
            x_BTC.shape[:2] == (1, sum(length for _, length in prompts))
            and self.head_width <= MAX_WIDTH
            and _is_plain_inference(x_BTC)
            and all(one.storage_dtype is STORAGE_DTYPE for one, _ in prompts)
        )
        return prompts if is_taken else ()

    def _steps(self, x_BTC: Tensor, cache: Cache | None) -> Sequence[KVCache]:
        """The cache of each position of the call, if the kernels take them; packed ones count it themselves."""
        caches = cache.caches if isinstance(cache, PackedSteps) else (cache,) if isinstance(cache, KVCache) else ()
        is_taken = (
            x_BTC.shape[0] == 1
            and x_BTC.shape[1] == len(caches)
            and _is_plain_inference(x_BTC)
            and all(one.storage_dtype is STORAGE_DTYPE and one.get_seq_length(self.layer_id) > 0 for one in caches)
        )
        return caches if is_taken else ()


class FusedGLU(GLU):
    """A GLU whose activation is computed where it lies, for a slice of a prompt at a time."""

    def __init__(self, plain: GLU) -> None:
        nn.Module.__init__(self)
        self.dense_h_to_4h, self.dense_4h_to_h = plain.dense_h_to_4h, plain.dense_4h_to_h
        self.train(plain.training)

    def forward(self, x_BTC: Tensor) -> Tensor:
        if not _is_plain_inference(x_BTC):
            return super().forward(x_BTC)
        num_slices = max(1, -(-x_BTC.shape[1] // MLP_TOKENS))
        mixed = [self._mixed(slice_BTC) for slice_BTC in x_BTC.chunk(num_slices, dim=1)]
        return mixed[0] if num_slices == 1 else torch.cat(mixed, dim=1)

    def _mixed(self, x_BTC: Tensor) -> Tensor:
        return self.dense_4h_to_h(kernels.gelu_(self.dense_h_to_4h(x_BTC)))


def _is_plain_inference(x_BTC: Tensor) -> bool:
    is_taken = x_BTC.dtype is torch.float32 and x_BTC.is_cpu and not torch.is_grad_enabled()
    return is_taken and kernels.backend_name() == "native"


def fuse(network: ChatGLMModel) -> None:
    """Replace attention and MLP of every block; once is enough, more does nothing."""
    for layer in network.layers:
        if type(layer.attention) is SelfAttention:
            layer.attention = FusedSelfAttention(layer.attention)
        if type(layer.mlp) is GLU:
            layer.mlp = FusedGLU(layer.mlp)


def cache_dtype(network: ChatGLMModel) -> torch.dtype | None:
    """Type of a request's cache: what the kernels take, if they can take this network now; None = the network's own."""
    is_fused = isinstance(network.layers[0].attention, FusedSelfAttention)
    norm = network.final_layernorm.weight
    if is_fused and norm.is_cpu and norm.dtype is torch.float32 and kernels.backend_name() == "native":
        return STORAGE_DTYPE
    return None
