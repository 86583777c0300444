"""Decode steps of ChatGLM-6B of fixed shape over a paged cache, which a GPU captures as graphs; the host reads nothing.

    a = norm(embedding)
    every block:  q = qkv(a), rotated; k and v go to the pages   mixed = attention    m = norm(dense(mixed) + s a)
                  a = norm(MLP(m) + s m), by the norm of the next block or the final one

Shapes: B rows (requests or padding), R position rows (2 or 1), M pages of a table, V vocabulary, C model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from chatglm import kernels
from chatglm.kernels import triton as gpu
from chatglm.models.chatglm.network import GLU, RESIDUAL_SCALE, ChatGLMNetwork
from chatglm.models.chatglm.positions import Layout
from chatglm.nn.lora import LowRankLinear, rows_using, updates_for
from chatglm.nn.pages import PagedPrompt, PagedPrompts, Pages, places
from chatglm.nn.rotary import rows_at, tables_to
from chatglm.nn.transfer import to_device
from chatglm.quantization.layers import QuantizedLinear


class PagedDecoder:
    """A network as `chatglm.engine.steps` runs it (`PagedModel`)."""

    def __init__(self, network: ChatGLMNetwork) -> None:
        self._network = network
        self._transformer = network.transformer

    @property
    def device(self) -> torch.device:
        return self._network.device

    @property
    def lies_on_one_gpu(self) -> bool:
        """Whether it is on one CUDA device, with kernels; without them a step gathers whole tables in float32."""
        parameters = list(self._network.parameters())
        device = parameters[0].device
        is_on_one = device.type == "cuda" and all(parameter.device == device for parameter in parameters)
        return is_on_one and self._is_whole(parameters) and gpu.is_available(device)

    def _is_whole(self, parameters: Sequence[Tensor]) -> bool:
        """Whether no other process has a share of the network, whoever has split it."""
        # transformers leaves distributed tensors behind, whose shapes are those of the whole, or shares of them.
        if self._network.num_ranks > 1 or any(hasattr(parameter, "to_local") for parameter in parameters):
            return False
        layers: Any = self._transformer.layers
        projection = layers[0].attention.query_key_value
        rows = projection.out_features if type(projection) is LowRankLinear else projection.weight.shape[0]
        return bool(rows == 3 * self._network.config.hidden_size)

    @property
    def num_position_rows(self) -> int:
        return 2 if self._network.config.position_encoding_2d else 1

    def can_step(self, prompt: Tensor, layout: Layout) -> bool:
        return layout.num_bidirectional == prompt.shape[1] - 1

    def new_pages(self, num_pages: int) -> Pages:
        """Room for the keys and values of so many pages, in the type that the network computes in."""
        config, norm, width = (
            self._network.config,
            self._transformer.final_layernorm.weight,
            self._transformer.head_width,
        )
        # A row that has ended may be stepped once more, behind the last position.
        rotary_tables = tables_to(config.max_sequence_length + 2, width // self.num_position_rows, norm.device)
        num_heads = config.num_attention_heads // self._network.num_ranks
        return Pages.empty(config.num_layers, num_pages, num_heads, width, rotary_tables, norm.dtype)

    def answer_positions(self, layout: Layout, column: int) -> Tensor:
        first, second = torch.tensor([layout.answer_positions(column), layout.answer_positions(column + 1)])
        return torch.stack((first, second - first))

    def fill_pages(
        self,
        prompts: Sequence[Tensor],
        layouts: Sequence[Layout],
        pages: Pages,
        tables: Sequence[Tensor],
        uses_adapter: Sequence[bool],
    ) -> None:
        """Prefill the contexts of prompts [1, n] on the CPU, all ids before `<sop>`, in one pass without a mask.

        `tables`: pages of each, int32 [M] on the CPU; a trained prefix takes their first positions.
        `uses_adapter`: whether each begins with the prefix, if there is one, and uses a LoRA update.
        """
        device = self._transformer.final_layernorm.weight.device
        requests = [_NewRequest(*each) for each in zip(prompts, layouts, tables, uses_adapter, strict=True)]
        # Prompts of one length that lie side by side attend in one call.
        requests.sort(key=lambda one: (one.length, one.uses_adapter))
        lengths, uses = [one.length for one in requests], [one.uses_adapter for one in requests]
        ids = torch.cat([one.prompt[:, : one.length] for one in requests], dim=-1)
        positions = torch.cat([one.layout.positions(0, one.length) for one in requests], dim=-1)
        prefix = self._stored_prefix(pages, [one.table for one in requests if one.uses_adapter])
        num_before = (self._network.config.pre_seq_len or 0) if prefix else 0
        paged = [PagedPrompt(one.table, one.length, num_before * one.uses_adapter) for one in requests]
        packed = PagedPrompts(pages, paged, prefix)
        with updates_for(rows_using(uses, lengths, sum(lengths), device)):
            self._transformer(to_device(ids, device), to_device(positions, device), None, packed)

    def step(
        self,
        ids_B: Tensor,
        positions_BR: Tensor,
        pages: Pages,
        table_BM: Tensor,
        lengths_B: Tensor,
        uses_adapter_B: Tensor,
    ) -> Tensor:
        """Logits [B, V] after one more id (int64) at positions (int64) of each row; its keys and values go to `pages`.

        int32 `table_BM`: pages of each row; int32 `lengths_B`: positions, this one included. bool `uses_adapter_B`.
        """
        with updates_for(uses_adapter_B):
            return self._step(ids_B, positions_BR, pages, table_BM, lengths_B)

    def _step(self, ids_B: Tensor, positions_BR: Tensor, pages: Pages, table_BM: Tensor, lengths_B: Tensor) -> Tensor:
        network = self._transformer
        x_BC = network.word_embeddings(ids_B)
        cos_BD, sin_BD = rows_at(pages.rotary_tables, positions_BR, x_BC.dtype)
        layers: list[Any] = list(network.layers)
        a_BC = layers[0].input_layernorm(x_BC)
        norms = [*(layer.input_layernorm for layer in layers[1:]), network.final_layernorm]
        for number, (layer, next_norm) in enumerate(zip(layers, norms, strict=True)):
            attention, mlp = layer.attention, layer.mlp
            keys, values = pages.keys[number], pages.values[number]
            query_BHD = kernels.rotate_and_store(
                attention.query_key_value(a_BC), cos_BD, sin_BD, keys, values, table_BM, lengths_B, attention.num_parts
            )
            mixed_BC = kernels.decode_attention(query_BHD, keys, values, table_BM, lengths_B).flatten(1)
            m_BC = _add_and_norm(attention.dense, mixed_BC, a_BC, layer.post_attention_layernorm)
            a_BC = _add_and_norm(mlp.dense_4h_to_h, _activated(mlp, m_BC), m_BC, next_norm)
        return self._network.lm_head(a_BC)

    def _stored_prefix(self, pages: Pages, tables: Sequence[Tensor]) -> Sequence[tuple[Tensor, Tensor]]:
        """Put the trained prefix, if used, into the first places of these tables; keys and values of each layer."""
        if self._transformer.prefix_encoder is None or not tables:
            return ()
        prefix: list[tuple[Tensor, Tensor]]
        prefix = self._transformer.prefix_encoder(1, self._transformer.final_layernorm.weight.dtype)
        where = zip(*(places(table, 0, self._network.config.pre_seq_len or 0) for table in tables), strict=True)
        page_GP, place_GP = (to_device(torch.stack(parts), prefix[0][0].device) for parts in where)
        for layer_idx, (key, value) in enumerate(prefix):
            pages.store(key[0], value[0], layer_idx, page_GP, place_GP)
        return prefix


@dataclass(frozen=True)
class _NewRequest:
    """A request whose prompt is about to be taken in; see `PagedDecoder.fill_pages`."""

    prompt: Tensor
    layout: Layout
    table: Tensor
    uses_adapter: bool

    @property
    def length(self) -> int:
        return self.layout.num_bidirectional


def _add_and_norm(layer: nn.Module, x: Tensor, residual_BC: Tensor, norm: nn.LayerNorm) -> Tensor:
    """norm(layer(x) + RESIDUAL_SCALE * residual); on a card the norm sums the parts of a packed product as well."""
    if type(layer) is QuantizedLinear and gpu.takes(x):
        branch, bias = gpu.linear_partials(x, layer.weight, layer.weight_scale, layer.bits), layer.bias
    else:
        branch, bias = layer(x), None
    return kernels.residual_norm(branch, residual_BC, RESIDUAL_SCALE, norm.weight, norm.bias, norm.eps, bias)


def _activated(mlp: GLU, x_BC: Tensor) -> Tensor:
    """The first half of the MLP; on a card the product applies GELU as well."""
    layer: nn.Module = mlp.dense_h_to_4h
    if type(layer) is QuantizedLinear:
        return kernels.linear(x_BC, layer.weight, layer.weight_scale, layer.bits, layer.bias, gelu=True)
    # torch keeps this one to itself. On a card its GELU is the tanh form, elsewhere it is not.
    if type(layer) is nn.Linear and x_BC.is_cuda and hasattr(torch, "_addmm_activation"):
        return torch._addmm_activation(layer.bias, x_BC, layer.weight.t(), use_gelu=True)
    return mlp.activated(x_BC)
