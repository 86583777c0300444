"""The network of ChatGLM2-6B, ChatGLM3-6B, CodeGeeX2-6B and GLM-4-9B; tensor names are those of the published files.

RMSNorm before each branch, grouped query attention, rotary on half of each head, SwiGLU, causal.
Shapes: B rows, T positions of this call, S positions incl. the cache, H query heads, G key and value heads, D head
width, C model width, F MLP width, L layers, P prefix length, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from chatglm.model_spec import ModelSpec
from chatglm.models.chatglm2.positions import CausalLayout, find_layout
from chatglm.models.chatglm2.template import encode_chat
from chatglm.models.chatglm2.weights import model_spec
from chatglm.nn.attention import Causal, attend, attend_with_probabilities
from chatglm.nn.kv_cache import AnyCache, concatenated, uses_adapter
from chatglm.nn.packed import Packed
from chatglm.nn.prefix_encoder import PrefixEncoder
from chatglm.nn.rotary import pair_tables, rotate_pairs

Pair = tuple[Tensor, Tensor]
Cache = AnyCache | Packed


class SelfAttention(nn.Module):
    """Query, key and value in one product: concatenated, or interleaved per head without grouped heads."""

    def __init__(self, config: Any, layer_id: int) -> None:
        super().__init__()
        self.layer_id, self.head_width = layer_id, config.kv_channels
        self.is_interleaved = not config.multi_query_attention
        self.heads_per_group = config.num_attention_heads // config.num_key_value_heads
        inner, shared = (
            heads * config.kv_channels for heads in (config.num_attention_heads, config.num_key_value_heads)
        )
        has_bias = config.add_bias_linear or config.add_qkv_bias
        self.query_key_value = nn.Linear(config.hidden_size, inner + 2 * shared, bias=has_bias)
        self.dense = nn.Linear(inner, config.hidden_size, bias=config.add_bias_linear)

    def forward(
        self,
        x_BTC: Tensor,
        tables: Pair,
        visible: Tensor | Causal | None,
        cache: Cache | None,
        prefix: Pair | None,
        probabilities: list[Tensor] | None,
    ) -> Tensor:
        query, key, value = self.heads(self.query_key_value(x_BTC))
        query, key = rotate_pairs(query, tables), rotate_pairs(key, tables)
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

    def heads(self, qkv_BTE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, H, T, D], keys and values [B, G, T, D]; a tensor-parallel rank has only some of them."""
        if self.is_interleaved:
            query, key, value = qkv_BTE.unflatten(-1, (-1, 3 * self.head_width)).transpose(1, 2).chunk(3, dim=-1)
            return query, key, value
        heads = qkv_BTE.unflatten(-1, (-1, self.head_width)).transpose(1, 2)
        num_groups = heads.shape[1] // (self.heads_per_group + 2)
        query, key, value = heads.split((num_groups * self.heads_per_group, num_groups, num_groups), dim=1)
        return query, key, value


class SwiGLU(nn.Module):
    """dense_4h_to_h(silu(gate) * up), gate and up in one product."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.dense_h_to_4h = nn.Linear(config.hidden_size, 2 * config.ffn_hidden_size, bias=config.add_bias_linear)
        self.dense_4h_to_h = nn.Linear(config.ffn_hidden_size, config.hidden_size, bias=config.add_bias_linear)

    def forward(self, x_BTC: Tensor) -> Tensor:
        gate, up = self.dense_h_to_4h(x_BTC).chunk(2, dim=-1)
        return self.dense_4h_to_h(F.silu(gate) * up)


class GLMBlock(nn.Module):
    """y = x + attention(norm(x)); result = y + MLP(norm(y)), with what `ChatGLM2NetworkConfig` says of norms."""

    def __init__(self, config: Any, layer_id: int) -> None:
        super().__init__()
        self.residual_is_normed = config.apply_residual_connection_post_layernorm
        self.input_layernorm = new_norm(config)
        self.self_attention = SelfAttention(config, layer_id)
        self.post_attention_layernorm = new_norm(config)
        self.mlp = SwiGLU(config)
        self.post_self_attn_layernorm, self.post_mlp_layernorm = (
            new_norm(config) if config.sandwich_norms else None for _ in range(2)
        )

    def forward(
        self,
        x_BTC: Tensor,
        tables: Pair,
        visible: Tensor | Causal | None,
        cache: Cache | None = None,
        prefix: Pair | None = None,
        probabilities: list[Tensor] | None = None,
    ) -> Tensor:
        a = self.input_layernorm(x_BTC)
        branch = self.self_attention(a, tables, visible, cache, prefix, probabilities)
        y = (a if self.residual_is_normed else x_BTC) + _normed(branch, self.post_self_attn_layernorm)
        m = self.post_attention_layernorm(y)
        return (m if self.residual_is_normed else y) + _normed(self.mlp(m), self.post_mlp_layernorm)


def new_norm(config: Any) -> nn.Module:
    """[C]: RMSNorm or LayerNorm."""
    kind = nn.RMSNorm if config.rmsnorm else nn.LayerNorm
    return kind(config.hidden_size, eps=config.layernorm_epsilon)


def _normed(branch: Tensor, norm: nn.Module | None) -> Tensor:
    return branch if norm is None else norm(branch)


class ChatGLM2Model(nn.Module):
    """Token ids to hidden states, and the output head. Positions and visibility are given by the caller."""

    # Names that transformers looks for when gradient checkpointing is switched on.
    gradient_checkpointing = False
    _gradient_checkpointing_func: Callable[..., Any]

    def __init__(self, config: Any, spec: ModelSpec) -> None:
        super().__init__()
        self.config = config
        self.embedding: Any = nn.Module()
        self.embedding.word_embeddings = nn.Embedding(config.padded_vocab_size, config.hidden_size)
        self.encoder: Any = nn.Module()
        self.encoder.layers = nn.ModuleList(GLMBlock(config, layer_id) for layer_id in range(config.num_layers))
        self.encoder.final_layernorm = new_norm(config) if config.post_layer_norm else nn.Identity()
        self.output_layer: nn.Module = nn.Linear(config.hidden_size, config.padded_vocab_size, bias=False)
        self.prefix_encoder: PrefixEncoder | None = None
        if config.pre_seq_len is not None:
            self.prefix_encoder = PrefixEncoder(spec, config.pre_seq_len, config.prefix_projection)

    def forward(
        self,
        input_ids_BT: Tensor | None,
        position_ids: Tensor,
        visible: Tensor | Causal | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        hidden_states: list[Tensor] | None = None,
        probabilities: list[Tensor] | None = None,
    ) -> Tensor:
        """Hidden states [B, T, C] after the final norm.

        `position_ids` [B, T]. `visible` bool [B, 1, T, S] without prefix columns, True = may be seen; None = all.
        `cache` is filled and attended to; packed (B = 1), it holds several requests. `inputs_embeds` [B, T, C] replace
        `input_ids_BT`. `hidden_states` receives the input of every layer and the result, `probabilities` every layer's
        attention [B, H, T, S].
        """
        x_BTC = self.embedding.word_embeddings(input_ids_BT) if inputs_embeds is None else inputs_embeds
        config = self.config
        tables = pair_tables(
            position_ids, config.kv_channels // 2, x_BTC.dtype, config.rotary_base, config.position_divisor
        )
        prefixes = self._prefixes(x_BTC, cache)
        if self.prefix_encoder is not None and isinstance(visible, Tensor) and uses_adapter(cache):
            visible = F.pad(visible, (config.pre_seq_len, 0), value=True)
        for layer, prefix in zip(self.encoder.layers, prefixes, strict=True):
            if hidden_states is not None:
                hidden_states.append(x_BTC)
            if self.gradient_checkpointing and self.training:
                x_BTC = self._gradient_checkpointing_func(layer, x_BTC, tables, visible, None, prefix, probabilities)
            else:
                x_BTC = layer(x_BTC, tables, visible, cache, prefix, probabilities)
        x_BTC = self.encoder.final_layernorm(x_BTC)
        if hidden_states is not None:
            hidden_states.append(x_BTC)
        return x_BTC

    def _prefixes(self, x_BTC: Tensor, cache: Cache | None) -> list[Pair | None]:
        """The prefix of each layer in the first call, before the cache holds it; packed caches hold it already."""
        is_there = isinstance(cache, Packed) or (cache is not None and cache.get_seq_length() > 0)
        if self.prefix_encoder is None or is_there or not uses_adapter(cache):
            return [None] * len(self.encoder.layers)
        return list(self.prefix_encoder(x_BTC.shape[0], x_BTC.dtype))


class ChatGLM2Network(nn.Module):
    """The network as the engine runs it (`Network`); `num_ranks` processes share its layers."""

    config: Any
    spec: ModelSpec
    transformer: ChatGLM2Model
    num_ranks = 1
    stored_defaults: dict[str, Any]
    encode_chat = staticmethod(encode_chat)
    model_spec: Callable[[Any], ModelSpec] = staticmethod(model_spec)

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.build()

    def build(self) -> None:
        self.spec = self.model_spec(self.config)
        self.transformer = ChatGLM2Model(self.config, self.spec)
        if self.transformer.prefix_encoder is not None:
            self.requires_grad_(False)
            self.transformer.prefix_encoder.requires_grad_(True)

    @property
    def lm_head(self) -> nn.Module:
        return self.transformer.output_layer

    @property
    def _last_norm(self) -> Tensor:
        encoder = self.transformer.encoder
        last = encoder.final_layernorm if self.config.post_layer_norm else encoder.layers[-1].post_attention_layernorm
        weight: Tensor = last.weight
        return weight

    @property
    def device(self) -> torch.device:
        return self._last_norm.device

    @property
    def dtype(self) -> torch.dtype:
        """What is computed in; packed weights keep their own."""
        return self._last_norm.dtype

    @property
    def prefix_encoder(self) -> PrefixEncoder | None:
        return self.transformer.prefix_encoder

    def forward_hidden(
        self, input_ids_BT: Tensor, position_ids: Tensor, visible: Tensor | Causal | None, cache: Cache | None
    ) -> Tensor:
        return self.transformer(input_ids_BT, position_ids, visible, cache)

    def forward(self, input_ids_BT: Tensor, cache: Cache | None = None) -> Tensor:
        """Logits [B, T, V] of whole sequences, positions and visibility derived from their ids."""
        layout = find_layout(input_ids_BT, self.config)
        stop = input_ids_BT.shape[1]
        return self.lm_head(
            self.forward_hidden(input_ids_BT, layout.positions(0, stop), layout.visible(0, stop), cache)
        )

    def find_layout(self, input_ids_BT: Tensor, attention_mask: Tensor | None = None) -> CausalLayout:
        return find_layout(input_ids_BT, self.config, attention_mask)

    def cache_dtype(self) -> torch.dtype | None:
        """That of the network."""
        return None
