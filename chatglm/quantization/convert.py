"""Swaps the linear layers of a network for packed ones, from outside: `spec.linears` names them.

A network says in its configuration how it is packed: quantization_bit, quantization_group_size for the linear layers,
quantization_embedding_bit for embedding and output head.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

from torch import nn

from chatglm.quantization.layers import QuantizedEmbedding, QuantizedLinear


def named_linears(network: Any) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """(parent, name in it, layer) of every linear layer that is packed; under an attached LoRA update, its base.

    Raises:
        AttributeError: a layer that the spec names does not exist.
    """
    for layer in network.get_submodule(network.spec.layers):
        for linear in network.spec.linears:
            owner, _, name = linear.name.rpartition(".")
            parent = layer.get_submodule(owner)
            module = getattr(parent, name)
            if isinstance(base := getattr(module, "base", None), nn.Module):
                parent, name, module = module, "base", base
            if isinstance(module, nn.Linear):
                yield parent, name, module


def make_room(network: Any) -> None:
    """Replace layers by packed ones that wait for their values from a checkpoint, as the configuration says."""
    config, spec = network.config, network.spec
    if config.quantization_bit:
        for parent, name, linear in list(named_linears(network)):
            new = QuantizedLinear(
                linear.in_features,
                linear.out_features,
                config.quantization_bit,
                linear.bias is not None,
                config.quantization_group_size,
            )
            setattr(parent, name, new)
        _use_fused_kernels(network)
    if config.quantization_embedding_bit:
        bits = config.quantization_embedding_bit
        _replace(network, spec.embedding, QuantizedEmbedding(spec.vocab_size, spec.hidden_size, bits))
        _replace(network, spec.head, QuantizedLinear(spec.hidden_size, spec.vocab_size, bits, bias=False))


def quantize_network(network: Any) -> None:
    """Replace layers by packed ones of the same values, one by one: the peak is the network and one layer."""
    for parent, name, linear in named_linears(network):
        packed = QuantizedLinear.of(linear, network.config.quantization_bit, network.config.quantization_group_size)
        setattr(parent, name, packed)
        del linear
    gc.collect()
    _use_fused_kernels(network)


def _use_fused_kernels(network: Any) -> None:
    """The kernels between the products pay where these are fast; not every family has them."""
    if hasattr(network, "fuse"):
        network.fuse()


def _replace(network: nn.Module, name: str, module: nn.Module) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(network.get_submodule(owner), leaf, module)
