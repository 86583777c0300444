"""Swaps linear layers (`spec.linears`), embedding and head for packed ones, by the config's quantization_* fields."""

from __future__ import annotations

import gc
from typing import Any

from torch import nn

from chatglm.quantization.layers import QuantizedEmbedding, QuantizedLinear


def linear_names(network: Any) -> list[str]:
    """Full names of all transformer layers' linear layers, or their LoRA bases; AttributeError if one is missing."""
    spec = network.spec
    names = (f"{spec.layers}.{number}.{linear.name}" for number in range(spec.num_layers) for linear in spec.linears)
    return [f"{name}.base" if hasattr(network.get_submodule(name), "base") else name for name in names]


def make_room(network: Any) -> None:
    """Replace layers by packed ones that wait for their values from a checkpoint, as the configuration says."""
    config, spec = network.config, network.spec
    if config.quantization_bit:
        for name in linear_names(network):
            _make_room_at(network, name, config.quantization_bit, config.quantization_group_size)
        _use_fused_kernels(network)
    if bits := config.quantization_embedding_bit:
        network.set_submodule(spec.embedding, QuantizedEmbedding(spec.vocab_size, spec.hidden_size, bits))
        _make_room_at(network, spec.head, bits)


def quantize_network(network: Any) -> None:
    """Replace layers by packed ones of the same values, one by one: the peak is the network and one layer."""
    bits, group_size = network.config.quantization_bit, network.config.quantization_group_size
    for name in linear_names(network):
        network.set_submodule(name, QuantizedLinear.of(network.get_submodule(name), bits, group_size))
    gc.collect()
    _use_fused_kernels(network)


def check_packed(network: Any) -> None:
    """Assert that every linear layer of the spec is packed, if the configuration says so."""
    if bits := network.config.quantization_bit:
        names = linear_names(network)
        plain = [name for name in names if getattr(network.get_submodule(name), "bits", None) != bits]
        assert not plain, f"not quantized to {bits} bits: {plain}"


def _make_room_at(network: nn.Module, name: str, bits: int, group_size: int = 0) -> None:
    linear: Any = network.get_submodule(name)
    rows, columns, has_bias = linear.out_features, linear.in_features, linear.bias is not None
    network.set_submodule(name, QuantizedLinear(columns, rows, bits, has_bias, group_size))


def _use_fused_kernels(network: Any) -> None:
    """The kernels between the products pay where these are fast; not every family has them."""
    if hasattr(network, "fuse"):
        network.fuse()
