"""The Glimmer network.

Shapes: B rows, T positions of this call, S positions with the cache, C model width, H query heads, G key and value
heads, D head width, F MLP width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from chatglm.nn.attention import attend
from chatglm.nn.kv_cache import concatenated
from chatglm.nn.packed import Packed
from chatglm.nn.prefix_encoder import PrefixEncoder
from tests.families.glimmer.config import GlimmerNetworkConfig
from tests.families.glimmer.positions import GlimmerLayout, find_layout
from tests.families.glimmer.weights import model_spec

ROTARY_BASE = 10000.0
Pair = tuple[Tensor, Tensor]


class GlimmerAttention(nn.Module):
    """Grouped query attention; query, key and value are concatenated in one linear layer."""

    def __init__(self, config: GlimmerNetworkConfig, layer_id: int) -> None:
        super().__init__()
        self.layer_id, self.head_width = layer_id, config.kv_channels
        self.heads_per_group = config.num_attention_heads // config.multi_query_group_num
        inner, shared = (
            heads * config.kv_channels for heads in (config.num_attention_heads, config.multi_query_group_num)
        )
        self.query_key_value = nn.Linear(config.hidden_size, inner + 2 * shared)
        self.dense = nn.Linear(inner, config.hidden_size, bias=False)

    def forward(self, x_BTC: Tensor, angles: Tensor, visible: Tensor | None, cache: Any, prefix: Pair | None) -> Tensor:
        qkv = self.query_key_value(x_BTC).unflatten(-1, (-1, self.head_width)).transpose(1, 2)
        num_groups = qkv.shape[1] // (self.heads_per_group + 2)  # a tensor-parallel rank has some of them
        query, key, value = qkv.split((num_groups * self.heads_per_group, num_groups, num_groups), dim=1)
        query, key = rotate_pairs(query, angles), rotate_pairs(key, angles)
        if isinstance(cache, Packed):
            mixed = cache.attend(query, key, value, self.layer_id)
        else:
            if prefix is not None:
                key, value = concatenated(prefix, key, value)
            if cache is not None:
                key, value = cache.update(key, value, self.layer_id)
            mixed = attend(query, key, value, visible)
        return self.dense(mixed.transpose(1, 2).flatten(2))


class GlimmerMLP(nn.Module):
    """SwiGLU; gate and up are concatenated in one linear layer."""

    def __init__(self, config: GlimmerNetworkConfig) -> None:
        super().__init__()
        self.dense_h_to_4h = nn.Linear(config.hidden_size, 2 * config.ffn_hidden_size, bias=False)
        self.dense_4h_to_h = nn.Linear(config.ffn_hidden_size, config.hidden_size, bias=False)

    def forward(self, x_BTC: Tensor) -> Tensor:
        gate, up = self.dense_h_to_4h(x_BTC).chunk(2, dim=-1)
        return self.dense_4h_to_h(F.silu(gate) * up)


class GlimmerBlock(nn.Module):
    """y = x + attention(norm(x)); result = y + MLP(norm(y))."""

    def __init__(self, config: GlimmerNetworkConfig, layer_id: int) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.self_attention = GlimmerAttention(config, layer_id)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.mlp = GlimmerMLP(config)

    def forward(
        self, x_BTC: Tensor, angles: Tensor, visible: Tensor | None, cache: Any = None, prefix: Pair | None = None
    ) -> Tensor:
        x_BTC = x_BTC + self.self_attention(self.input_layernorm(x_BTC), angles, visible, cache, prefix)
        return x_BTC + self.mlp(self.post_attention_layernorm(x_BTC))


class GlimmerNetwork(nn.Module):
    """The network with its output head; names are those of the stored tensors."""

    num_ranks = 1

    def __init__(self, config: GlimmerNetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.build()

    def build(self) -> None:
        """Make the modules that `self.config` describes."""
        config, self.spec = self.config, model_spec(self.config)
        self.transformer = nn.Module()
        self.transformer.embedding = nn.Module()
        self.transformer.embedding.word_embeddings = nn.Embedding(config.padded_vocab_size, config.hidden_size)
        self.transformer.encoder = nn.Module()
        self.transformer.encoder.layers = nn.ModuleList(GlimmerBlock(config, n) for n in range(config.num_layers))
        self.transformer.encoder.final_layernorm = nn.RMSNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.transformer.output_layer = nn.Linear(config.hidden_size, config.padded_vocab_size, bias=False)
        self.transformer.prefix_encoder = None
        if config.pre_seq_len is not None:
            self.transformer.prefix_encoder = PrefixEncoder(self.spec, config.pre_seq_len, config.prefix_projection)

    @property
    def lm_head(self) -> nn.Module:
        """The output head, wherever it lies."""
        return self.transformer.output_layer

    @property
    def device(self) -> torch.device:
        """Where requests come in and logits come out."""
        return self.transformer.encoder.final_layernorm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What is computed in."""
        return self.transformer.encoder.final_layernorm.weight.dtype

    @property
    def prefix_encoder(self) -> PrefixEncoder | None:
        """The trained prefix of P-Tuning v2, if there is one."""
        return self.transformer.prefix_encoder

    def find_layout(self, ids_BT: Tensor) -> GlimmerLayout:
        """See `positions.find_layout`."""
        return find_layout(ids_BT, self.config)

    def cache_dtype(self) -> torch.dtype | None:
        """What a request's cache should store: the type that the network computes in."""
        return None

    def forward_hidden(
        self, ids_BT: Tensor, positions_BT: Tensor, visible: Tensor | None = None, cache: Any = None
    ) -> Tensor:
        """Hidden states [B, T, C] after the final norm.

        `visible` is bool [B, 1, T, S] without the columns of a prefix, None = everything.
        """
        x_BTC = self.transformer.embedding.word_embeddings(ids_BT)
        angles = pair_angles(positions_BT, self.config.kv_channels // 2)
        uses_prefix = self.prefix_encoder is not None and getattr(cache, "uses_adapter", True)
        if uses_prefix and visible is not None:
            visible = F.pad(visible, (self.config.pre_seq_len, 0), value=True)
        prefixes: list[Pair | None] = [None] * self.config.num_layers
        if uses_prefix and not isinstance(cache, Packed) and (cache is None or cache.get_seq_length() == 0):
            prefixes = list(self.prefix_encoder(len(ids_BT), x_BTC.dtype))
        for layer, prefix in zip(self.transformer.encoder.layers, prefixes, strict=True):
            x_BTC = layer(x_BTC, angles, visible, cache, prefix)
        return self.transformer.encoder.final_layernorm(x_BTC)

    def forward(self, ids_BT: Tensor, cache: Any = None) -> Tensor:
        """Logits [B, T, V] of whole sequences; pads on the left are found."""
        layout, length = self.find_layout(ids_BT), ids_BT.shape[1]
        return self.lm_head(self.forward_hidden(ids_BT, layout.positions(0, length), layout.visible(0, length), cache))


def pair_angles(positions_BT: Tensor, width: int) -> Tensor:
    """Rotation of each pair of `width` rotary dimensions: float32 [B, 1, T, width / 2]."""
    exponents = torch.arange(0, width, 2, dtype=torch.float32, device=positions_BT.device) / width
    return positions_BT[:, None, :, None].float() / ROTARY_BASE**exponents


def rotate_pairs(x_BHTD: Tensor, angles: Tensor) -> Tensor:
    """Rotate the pairs (0, 1), (2, 3), ... of the first half of each head; the other half passes."""
    rotated, passed = x_BHTD.chunk(2, dim=-1)
    even, odd = rotated[..., 0::2], rotated[..., 1::2]
    cos, sin = angles.cos().to(x_BHTD.dtype), angles.sin().to(x_BHTD.dtype)
    pairs = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1)
    return torch.cat((pairs.flatten(-2), passed), dim=-1)
