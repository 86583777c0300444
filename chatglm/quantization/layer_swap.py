"""Walks a network and swaps linear layers for quantized ones, from outside: the network never asks."""

from __future__ import annotations

import gc
from collections.abc import Collection, Iterator

from torch import nn

from chatglm.quantization.layers import QuantizedLinear


def named_linears(root: nn.Module, names: Collection[str]) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """(parent, name in it, layer) of every linear layer under `root` whose own name is in `names`.

    Where an update lies beside such a layer, it is the `base` of what has its name.
    """
    for parent in list(root.modules()):
        for name, child in list(parent.named_children()):
            if name in names and isinstance(child, nn.Linear):
                yield parent, name, child
            elif name in names and isinstance(base := getattr(child, "base", None), nn.Linear):
                yield child, "base", base


def quantize_linears(root: nn.Module, names: Collection[str], bits: int, group_size: int = 0) -> None:
    """Replace layers by quantized ones of the same values, one by one: the peak is the network and one layer."""
    for parent, name, linear in named_linears(root, names):
        setattr(parent, name, QuantizedLinear.of(linear, bits, group_size))
        del linear
    gc.collect()


def empty_linears(root: nn.Module, names: Collection[str], bits: int, group_size: int = 0) -> None:
    """Replace layers by quantized ones that wait for their values from a checkpoint."""
    for parent, name, linear in named_linears(root, names):
        new = QuantizedLinear(linear.in_features, linear.out_features, bits, linear.bias is not None, group_size)
        setattr(parent, name, new)
