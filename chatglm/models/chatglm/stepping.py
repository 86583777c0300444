"""What the ChatGLM-6B network offers to a runner that keeps everything on the device: pages and steps of fixed shape.

Knows: one step of all blocks as products and the three kernels between them, prompts into pages, where an answer's
positions begin. Does not know graphs, sampling, or who the requests are. Nothing in `step` is read by the host, and
its shapes follow from those of its arguments, so it can be captured as a graph and replayed.

A block adds its input, multiplied by a constant, only after a norm (see network.py). So what passes from part to part
is always a norm's result, and a norm takes the sum before it along:

    a = norm(embedding)
    every block:  q = qkv(a), turned; k and v go to the pages    mixed = attention    m = norm(dense(mixed) + s a)
                  a = norm(MLP(m) + s m), by the norm of the next block or the final one

Shapes: B rows (requests, or nobody), R position rows (2 or 1), M pages of a table, V vocabulary, C model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from chatglm.models.chatglm.configuration_chatglm import ChatGLMConfig
from chatglm.models.chatglm.layout import Layout
from chatglm.models.chatglm.network import GLU, RESIDUAL_SCALE, ChatGLMModel
from chatglm.nn.low_rank import rows_using, updates_for
from chatglm.nn.pages import PagedPrompt, PagedPrompts, Pages, places
from chatglm.nn.rotary import head_tables
from chatglm.quantization import kernels
from chatglm.quantization.kernels import gpu
from chatglm.quantization.layers import QuantizedLinear


class SteppingMixin:
    """The calls of `chatglm.engine.graph_runner.SteppingModel`, for a network with its output head."""

    config: ChatGLMConfig
    transformer: ChatGLMModel
    lm_head: nn.Module
    num_ranks: int

    @property
    def lies_on_one_gpu(self) -> bool:
        """Whether all weights are on the same CUDA device, so that one graph can hold a step."""
        devices = {parameter.device for parameter in self.transformer.parameters()}
        return self.num_ranks == 1 and len(devices) == 1 and next(iter(devices)).type == "cuda"

    @property
    def num_position_rows(self) -> int:
        """2, or 1 for a network of the older layout."""
        return 2 if self.config.position_encoding_2d else 1

    def can_step(self, prompt: Tensor, layout: Layout) -> bool:
        """Whether `fill_pages` takes all but the last id of a prompt: no answer is begun in it."""
        return int(layout.sop[0]) == prompt.shape[1] - 1

    def new_pages(self, num_pages: int) -> Pages:
        """Room for the keys and values of so many pages, in the type that the network computes in."""
        config, norm = self.config, self.transformer.final_layernorm.weight
        heads = config.num_attention_heads
        return Pages.empty(config.num_layers, num_pages, heads // self.num_ranks, config.hidden_size // heads, norm)

    def answer_positions(self, layout: Layout, column: int) -> Tensor:
        """Positions of a column behind `<sop>`, and what each grows by from step to step: int64 [2, R], on the CPU."""
        columns = torch.tensor([[column, column + 1]])
        positions_R2 = layout.positions_at(columns).view(-1, 2)
        return torch.stack((positions_R2[:, 0], positions_R2[:, 1] - positions_R2[:, 0]))

    def fill_pages(
        self,
        prompts: Sequence[Tensor],
        layouts: Sequence[Layout],
        pages: Pages,
        tables: Sequence[Tensor],
        uses_adapter: Sequence[bool],
    ) -> None:
        """Take in the contexts of prompts [1, n], all before `<sop>`, in one pass without a mask.

        Args:
            prompts: ids, on the CPU.
            layouts: of each.
            pages: where keys and values go.
            tables: pages of each, int32 [M] on the CPU; a trained prefix takes their first positions.
            uses_adapter: whether each begins with the prefix, if there is one, and uses a LoRA update.
        """
        device = self.transformer.final_layernorm.weight.device
        lengths = [int(layout.sop[0]) for layout in layouts]
        ids = torch.cat([prompt[:, :length] for prompt, length in zip(prompts, lengths, strict=True)], dim=-1)
        positions = [layout.positions(0, length) for layout, length in zip(layouts, lengths, strict=True)]
        prefix = self._stored_prefix(pages, tables, uses_adapter)
        num_before = (self.config.pre_seq_len or 0) if prefix else 0
        paged = [
            PagedPrompt(table, length, num_before if uses else 0)
            for table, length, uses in zip(tables, lengths, uses_adapter, strict=True)
        ]
        packed = PagedPrompts(pages, paged, prefix)
        with updates_for(rows_using(uses_adapter, lengths, sum(lengths), device)):
            self.transformer(ids.to(device), torch.cat(positions, -1).to(device), None, packed)

    def step(
        self,
        ids_B: Tensor,
        positions_BR: Tensor,
        pages: Pages,
        table_BM: Tensor,
        lengths_B: Tensor,
        uses_adapter_B: Tensor,
    ) -> Tensor:
        """Scores [B, V] after one more id of each row.

        Args:
            ids_B: int64, the ids.
            positions_BR: int64, their positions.
            pages: keys and values of all requests; those of the ids are added.
            table_BM: int32, pages of each row.
            lengths_B: int32, positions of each row, that of its id included.
            uses_adapter_B: bool, rows that use a LoRA update, if there is one.
        """
        with updates_for(uses_adapter_B):
            return self._step(ids_B, positions_BR, pages, table_BM, lengths_B)

    def _step(self, ids_B: Tensor, positions_BR: Tensor, pages: Pages, table_BM: Tensor, lengths_B: Tensor) -> Tensor:
        network = self.transformer
        x_BC = network.word_embeddings(ids_B)
        # With one position row [B, 1], with two [B, 2, 1]; a head's table is [B, 1, 1, D].
        positions = positions_BR if positions_BR.shape[1] == 1 else positions_BR[..., None]
        cos_BD, sin_BD = (table[:, 0, 0] for table in head_tables(positions, network.head_width, x_BC.dtype))
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
        return self.lm_head(a_BC)

    def _stored_prefix(
        self, pages: Pages, tables: Sequence[Tensor], uses_adapter: Sequence[bool]
    ) -> Sequence[tuple[Tensor, Tensor]]:
        """Put the trained prefix into the first places of those that begin with it; keys and values of each layer."""
        if self.transformer.prefix_encoder is None:
            return ()
        prefix = self.transformer.prefix_encoder(1, self.transformer.final_layernorm.weight.dtype)
        for table, uses in zip(tables, uses_adapter, strict=True):
            if uses:
                where = [part.to(prefix[0][0].device) for part in places(table, 0, self.config.pre_seq_len or 0)]
                for layer_idx, (key, value) in enumerate(prefix):
                    pages.store(key[0], value[0], layer_idx, *where)
        return prefix


def _add_and_norm(layer: nn.Module, x: Tensor, residual_BC: Tensor, norm: nn.LayerNorm) -> Tensor:
    """norm(layer(x) + RESIDUAL_SCALE * residual); on a card the norm sums the parts of a packed product as well."""
    if type(layer) is QuantizedLinear and gpu.takes(x):
        branch, bias = gpu.linear_partials(x, layer.weight, layer.weight_scale, layer.bits), layer.bias
    else:
        branch, bias = layer(x), None
    return kernels.residual_norm(branch, residual_BC, RESIDUAL_SCALE, norm.weight, norm.bias, norm.eps, bias)


def _activated(mlp: GLU, x_BC: Tensor) -> Tensor:
    """The first half of the MLP; on a card a packed product applies GELU as well."""
    layer: nn.Module = mlp.dense_h_to_4h
    if type(layer) is QuantizedLinear and gpu.takes(x_BC):
        return gpu.linear(x_BC, layer.weight, layer.weight_scale, layer.bits, layer.bias, gelu=True)
    return mlp.activated(x_BC)
