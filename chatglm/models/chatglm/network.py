"""The ChatGLM-6B network: token ids to hidden states.

Knows: embedding, 28 blocks, final norm. Does not know: the output head, positions and visibility of a sequence
(`layout.py`), prompts, sampling, quantization, devices.

What sets it apart from its successors: post-norm in effect (the residual branch starts from the *normalised* input,
multiplied by a constant), plain GELU MLP, per-head interleaved q|k|v, two rotary positions, a bidirectional prompt.
Inside, tensors are batch first; the original is sequence first. Tensor names are those of the published files.
Shapes: B rows, T positions of this call, S positions incl. the cache, H heads, D head width, C model width,
F MLP width, L layers, P prefix length.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from chatglm.models.chatglm.config import ChatGLMConfig
from chatglm.models.chatglm.split import check_distributed, check_ranks
from chatglm.nn.attention import attend, attend_with_probabilities
from chatglm.nn.kv_cache import AnyCache, KVCache, concatenated
from chatglm.nn.packed import Packed
from chatglm.nn.prefix_encoder import PrefixEncoder
from chatglm.nn.rotary import head_tables, rotate

# sqrt(2L) with L = 28 at any depth: upstream never passes the real depth, and published weights depend on it.
RESIDUAL_SCALE = math.sqrt(2 * 28)

Pair = tuple[Tensor, Tensor]
Cache = AnyCache | Packed


class SelfAttention(nn.Module):
    """q|k|v interleaved per head, two-part rotary, output projection."""

    def __init__(self, config: ChatGLMConfig, layer_id: int) -> None:
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
        """Queries and keys, turned by their positions, and values, each [B, H, T, D]."""
        query, key, value = self.heads(self.query_key_value(x_BTC))
        return rotate(query, tables, self.num_parts), rotate(key, tables, self.num_parts), value

    def heads(self, qkv_BTC: Tensor) -> Sequence[Tensor]:
        """[B, T, 3C] -> three of [B, H, T, D]; -1 heads, so that a tensor-parallel rank may hold only some of them."""
        return qkv_BTC.unflatten(-1, (-1, 3 * self.head_width)).transpose(1, 2).chunk(3, dim=-1)


class GLU(nn.Module):
    """The MLP: dense_4h_to_h(gelu_tanh(dense_h_to_4h(x))). Upstream's class name; nothing in it is gated."""

    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__()
        self.dense_h_to_4h = nn.Linear(config.hidden_size, config.inner_hidden_size)
        self.dense_4h_to_h = nn.Linear(config.inner_hidden_size, config.hidden_size)

    def forward(self, x_BTC: Tensor) -> Tensor:
        return self.dense_4h_to_h(self.activated(x_BTC))

    def activated(self, x_BTC: Tensor) -> Tensor:
        """gelu_tanh(dense_h_to_4h(x)), [B, T, F]."""
        return F.gelu(self.dense_h_to_4h(x_BTC), approximate="tanh")


class GLMBlock(GradientCheckpointingLayer):
    """a = LN1(x); y = scale * a + attention(a); m = LN2(y); result = scale * m + MLP(m)."""

    def __init__(self, config: ChatGLMConfig, layer_id: int) -> None:
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


class ChatGLMPreTrainedModel(PreTrainedModel):
    """What the library must know about any model of the family."""

    config_class = ChatGLMConfig
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _no_split_modules = ["GLMBlock"]
    _skip_keys_device_placement = ["past_key_values"]
    # Scales would lose three bits as bfloat16.
    _keep_in_fp32_modules_strict = ["weight_scale"]
    # Published files store these; they are computed here (see nn/rotary.py).
    _keys_to_ignore_on_load_unexpected = [r"rotary_emb\.inv_freq"]

    # Processes that share the network; each has so large a part of every layer, and of the heads.
    num_ranks = 1

    def check_ranks(self, num_ranks: int) -> None:
        """Raise InvalidRequestError unless so many processes can share the network."""
        check_ranks(self.config, num_ranks)

    @classmethod
    def maybe_distribute_model(cls, model: Any, distributed_config: Any, *args: Any, **kwargs: Any) -> Any:
        """As the library's `from_pretrained` calls it, after refusing what it cannot split."""
        check_distributed(model.config, distributed_config)
        return super().maybe_distribute_model(model, distributed_config, *args, **kwargs)


class ChatGLMModel(ChatGLMPreTrainedModel):
    """Token ids to hidden states. Everything about positions and visibility is given by the caller."""

    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__(config)
        self.head_width = config.hidden_size // config.num_attention_heads
        self.word_embeddings: nn.Module = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(GLMBlock(config, layer_id) for layer_id in range(config.num_layers))
        self.final_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.prefix_encoder: PrefixEncoder | None = None
        if config.pre_seq_len is not None:
            self.prefix_encoder = PrefixEncoder(
                config.pre_seq_len,
                config.num_layers,
                config.num_attention_heads,
                self.head_width,
                config.prefix_projection,
            )
        self.post_init()

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

        Args:
            input_ids_BT: token ids, or None with `inputs_embeds` [B, T, C].
            position_ids: [B, 2, T], or [B, T] with one position row.
            visible: bool [B, 1, T, S] without the prefix's columns, True = may be seen; None = everything is.
            cache: filled with this call's keys and values, and attended to; several requests' as one (B = 1) if packed.
            inputs_embeds: embeddings to use in place of `input_ids_BT`.
            hidden_states: if given, receives the input of every layer and the result.
            probabilities: if given, receives every layer's attention [B, H, T, S].
        """
        x_BTC = self.word_embeddings(input_ids_BT) if inputs_embeds is None else inputs_embeds
        tables = head_tables(position_ids, self.head_width, x_BTC.dtype)
        prefixes = self._prefixes(x_BTC, cache)
        if self.prefix_encoder is not None and visible is not None and uses_adapter(cache):
            visible = F.pad(visible, (self.config.pre_seq_len, 0), value=True)
        for layer, prefix in zip(self.layers, prefixes, strict=True):
            if hidden_states is not None:
                hidden_states.append(x_BTC)
            x_BTC = layer(x_BTC, tables, visible, cache, prefix, probabilities)
        x_BTC = self.final_layernorm(x_BTC)
        if hidden_states is not None:
            hidden_states.append(x_BTC)
        return x_BTC

    def _prefixes(self, x_BTC: Tensor, cache: Cache | None) -> list[Pair | None]:
        """The prefix of each layer where it must be put in front: in the first call, before the cache holds it.

        The caches of packed requests are given it beforehand.
        """
        is_there = isinstance(cache, Packed) or (cache is not None and cache.get_seq_length() > 0)
        if self.prefix_encoder is None or is_there or not uses_adapter(cache):
            return [None] * len(self.layers)
        return list(self.prefix_encoder(x_BTC.shape[0], x_BTC.dtype))


def uses_adapter(cache: Cache | None) -> bool:
    """Whether what was trained belongs to the conversation of a cache; transformers' own say nothing of it."""
    return not isinstance(cache, KVCache) or cache.uses_adapter
