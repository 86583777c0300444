"""The packed layers that a network of a quantized folder must have."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from chatglm.model_spec import ModelSpec
from chatglm.quantization.layers import QuantizedEmbedding, QuantizedLinear


def linear_names(spec: ModelSpec) -> list[str]:
    """Full names of the linear layers of every transformer layer."""
    return [f"{spec.layers}.{number}.{linear.name}" for number in range(spec.num_layers) for linear in spec.linears]


def expect_packed(network: Any) -> Any:
    """Give an empty network the packed layers that its configuration asks for; returns it.

    Raises:
        AttributeError: the spec names a layer that the network does not have.
    """
    config, spec = network.config, network.spec
    if config.quantization_bit:
        for name in linear_names(spec):
            _expect_linear(network, name, config.quantization_bit, config.quantization_group_size)
        if hasattr(network, "fuse"):
            network.fuse()
    if bits := config.quantization_embedding_bit:
        if not isinstance(network.get_submodule(spec.embedding), QuantizedEmbedding):
            with torch.device("meta"):
                network.set_submodule(spec.embedding, QuantizedEmbedding(spec.vocab_size, spec.hidden_size, bits))
        _expect_linear(network, spec.head, bits)
    return network


def _expect_linear(network: nn.Module, name: str, bits: int, group_size: int = 0) -> None:
    linear: Any = network.get_submodule(name)
    if not isinstance(linear, QuantizedLinear):
        rows, columns, has_bias = linear.out_features, linear.in_features, linear.bias is not None
        with torch.device("meta"):
            network.set_submodule(name, QuantizedLinear(columns, rows, bits, has_bias, group_size))


def check_packed(network: Any) -> None:
    """Assert that every linear layer of the spec is packed, if the configuration says so."""
    if bits := network.config.quantization_bit:
        modules = dict(network.named_modules())
        layers = {name: modules.get(f"{name}.base", modules[name]) for name in linear_names(network.spec)}
        plain = [name for name, layer in layers.items() if getattr(layer, "bits", None) != bits]
        assert not plain, f"not quantized to {bits} bits: {plain}"
