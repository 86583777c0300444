"""The ChatGLM-6B network: token ids to hidden states and logits. Tensor names are those of the published files.

Unlike its successors: the residual branch starts from the *normalised* input times a constant, plain GELU MLP, per-head
interleaved q|k|v, two rotary positions, a bidirectional prompt.
Shapes: B rows, T positions of this call, S positions incl. the cache, H heads, D head width, C model width,
F MLP width, L layers, P prefix length, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from chatglm.model_spec import ModelSpec
from chatglm.models.chatglm.positions import Layout, find_layout
from chatglm.models.chatglm.template import encode_chat
from chatglm.models.chatglm.weights import model_spec
from chatglm.nn.attention import attend, attend_with_probabilities
from chatglm.nn.kv_cache import AnyCache, concatenated, uses_adapter
from chatglm.nn.packed import Packed
from chatglm.nn.prefix_encoder import PrefixEncoder
from chatglm.nn.rotary import head_tables, rotate

# sqrt(2L) with L = 28 at any depth: upstream never passes the real depth, and published weights depend on it.
RESIDUAL_SCALE = math.sqrt(2 * 28)

Pair = tuple[Tensor, Tensor]
Cache = AnyCache | Packed


class SelfAttention(nn.Module):
    """q|k|v interleaved per head, two-part rotary, output projection."""

    def __init__(self, config: Any, layer_id: int) -> None:
        super().__init__()
        self.layer_id = layer_id
        self.head_width = config.hidden_size // config.num_attention_heads
        self.num_parts = 2 if config.position_encoding_2d else 1
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        x_BTC: Tensor,
        tables: Pair,
        visible: Tensor | None,
        cache: Cache | None,
        prefix: Pair | None,
        probabilities: list[Tensor] | None,
    ) -> Tensor:
        query, key, value = self.rotated(x_BTC, tables)
        if isinstance(cache, Packed):
            return self.dense(cache.attend(query, key, value, self.layer_id).transpose(1, 2).flatten(2))
        if prefix is not None:
            key, value = concatenated(prefix, key, value)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_id)
        if probabilities is None:
            mixed = attend(query, key, value, visible)
        else:
            mixed, weights = attend_with_probabilities(query, key, value, visible)
            probabilities.append(weights)
        return self.dense(mixed.transpose(1, 2).flatten(2))

    def rotated(self, x_BTC: Tensor, tables: Pair) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries and keys, and values, each [B, H, T, D]."""
        query, key, value = self.heads(self.query_key_value(x_BTC))
        return rotate(query, tables, self.num_parts), rotate(key, tables, self.num_parts), value

    def heads(self, qkv_BTC: Tensor) -> Sequence[Tensor]:
        """[B, T, 3C] -> three of [B, H, T, D]; -1 heads, so that a tensor-parallel rank may hold only some of them."""
        return qkv_BTC.unflatten(-1, (-1, 3 * self.head_width)).transpose(1, 2).chunk(3, dim=-1)


class GLU(nn.Module):
    """The MLP: dense_4h_to_h(gelu_tanh(dense_h_to_4h(x))). Upstream's class name; nothing in it is gated."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.dense_h_to_4h = nn.Linear(config.hidden_size, config.inner_hidden_size)
        self.dense_4h_to_h = nn.Linear(config.inner_hidden_size, config.hidden_size)

    def forward(self, x_BTC: Tensor) -> Tensor:
        return self.dense_4h_to_h(self.activated(x_BTC))

    def activated(self, x_BTC: Tensor) -> Tensor:
        """gelu_tanh(dense_h_to_4h(x)), [B, T, F]."""
        return F.gelu(self.dense_h_to_4h(x_BTC), approximate="tanh")


class GLMBlock(nn.Module):
    """a = LN1(x); y = scale * a + attention(a); m = LN2(y); result = scale * m + MLP(m)."""

    def __init__(self, config: Any, layer_id: int) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.attention = SelfAttention(config, layer_id)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.mlp = GLU(config)

    def forward(
        self,
        x_BTC: Tensor,
        tables: Pair,
        visible: Tensor | None,
        cache: Cache | None = None,
        prefix: Pair | None = None,
        probabilities: list[Tensor] | None = None,
    ) -> Tensor:
        a = self.input_layernorm(x_BTC)
        y = torch.add(self.attention(a, tables, visible, cache, prefix, probabilities), a, alpha=RESIDUAL_SCALE)
        m = self.post_attention_layernorm(y)
        return torch.add(self.mlp(m), m, alpha=RESIDUAL_SCALE)


class ChatGLMModel(nn.Module):
    """Token ids to hidden states. Everything about positions and visibility is given by the caller."""

    # Names that transformers looks for when gradient checkpointing is switched on.
    gradient_checkpointing = False
    _gradient_checkpointing_func: Callable[..., Any]

    def __init__(self, config: Any, spec: ModelSpec) -> None:
        super().__init__()
        self.config = config
        self.head_width = config.hidden_size // config.num_attention_heads
        self.word_embeddings: nn.Module = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(GLMBlock(config, layer_id) for layer_id in range(config.num_layers))
        self.final_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.prefix_encoder: PrefixEncoder | None = None
        if config.pre_seq_len is not None:
            self.prefix_encoder = PrefixEncoder(spec, config.pre_seq_len, config.prefix_projection)

    def forward(
        self,
        input_ids_BT: Tensor | None,
        position_ids: Tensor,
        visible: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        hidden_states: list[Tensor] | None = None,
        probabilities: list[Tensor] | None = None,
    ) -> Tensor:
        """Hidden states [B, T, C] after the final norm.

        `position_ids` [B, 2, T], or [B, T] with one row. `visible` bool [B, 1, T, S] without prefix columns, True = may
        be seen; None = all. `cache` is filled and attended to; packed (B = 1), it holds several requests.
        `inputs_embeds` [B, T, C] replace `input_ids_BT`. `hidden_states` receives the input of every layer and the
        result, `probabilities` every layer's attention [B, H, T, S].
        """
        x_BTC = self.word_embeddings(input_ids_BT) if inputs_embeds is None else inputs_embeds
        tables = head_tables(position_ids, self.head_width, x_BTC.dtype)
        prefixes = self._prefixes(x_BTC, cache)
        if self.prefix_encoder is not None and visible is not None and uses_adapter(cache):
            visible = F.pad(visible, (self.config.pre_seq_len, 0), value=True)
        for layer, prefix in zip(self.layers, prefixes, strict=True):
            if hidden_states is not None:
                hidden_states.append(x_BTC)
            if self.gradient_checkpointing and self.training:
                x_BTC = self._gradient_checkpointing_func(layer, x_BTC, tables, visible, None, prefix, probabilities)
            else:
                x_BTC = layer(x_BTC, tables, visible, cache, prefix, probabilities)
        x_BTC = self.final_layernorm(x_BTC)
        if hidden_states is not None:
            hidden_states.append(x_BTC)
        return x_BTC

    def _prefixes(self, x_BTC: Tensor, cache: Cache | None) -> list[Pair | None]:
        """The prefix of each layer in the first call, before the cache holds it; packed caches hold it already."""
        is_there = isinstance(cache, Packed) or (cache is not None and cache.get_seq_length() > 0)
        if self.prefix_encoder is None or is_there or not uses_adapter(cache):
            return [None] * len(self.layers)
        return list(self.prefix_encoder(x_BTC.shape[0], x_BTC.dtype))


class ChatGLMNetwork(nn.Module):
    """The network with its output head, which the engine runs (`Network`); `num_ranks` processes share its layers."""

    config: Any
    spec: ModelSpec
    transformer: ChatGLMModel
    lm_head: nn.Module
    num_ranks = 1
    stored_defaults: dict[str, Any]
    encode_chat = staticmethod(encode_chat)

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.build()

    def build(self) -> None:
        self.spec = model_spec(self.config)
        self.transformer = ChatGLMModel(self.config, self.spec)
        self.lm_head = nn.Linear(self.config.hidden_size, self.config.vocab_size, bias=False)
        if self.transformer.prefix_encoder is not None:
            self.requires_grad_(False)
            self.transformer.prefix_encoder.requires_grad_(True)

    @property
    def device(self) -> torch.device:
        return self.transformer.final_layernorm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What is computed in; packed weights keep their own."""
        return self.transformer.final_layernorm.weight.dtype

    @property
    def prefix_encoder(self) -> PrefixEncoder | None:
        return self.transformer.prefix_encoder

    def forward_hidden(
        self, input_ids_BT: Tensor, position_ids: Tensor, visible: Tensor | None, cache: Cache | None
    ) -> Tensor:
        return self.transformer(input_ids_BT, position_ids, visible, cache)

    def forward(self, input_ids_BT: Tensor, cache: Cache | None = None) -> Tensor:
        """Logits [B, T, V] of whole sequences, positions and visibility derived from their ids."""
        layout = find_layout(input_ids_BT, self.config)
        stop = input_ids_BT.shape[1]
        return self.lm_head(
            self.forward_hidden(input_ids_BT, layout.positions(0, stop), layout.visible(0, stop), cache)
        )

    def find_layout(self, input_ids_BT: Tensor, attention_mask: Tensor | None = None) -> Layout:
        return find_layout(input_ids_BT, self.config, attention_mask)

    def fuse(self) -> None:
        from chatglm.models.chatglm.fused import fuse

        fuse(self.transformer)

    def cache_dtype(self) -> torch.dtype | None:
        from chatglm.models.chatglm.fused import cache_dtype

        return cache_dtype(self.transformer)

    def paged_decoder(self) -> Any:
        from chatglm.models.chatglm.paged import PagedDecoder

        return PagedDecoder(self)
