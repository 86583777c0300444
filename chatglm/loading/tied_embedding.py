"""The table that is both input embedding and output head: whether the files hold it twice, and how it is kept.

Knows: that published folders store it twice with equal values, and that the native kernels want it in int8.
Does not know how other weights are placed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from chatglm import kernels
from chatglm.checkpoints import StoredTensor, WeightReader
from chatglm.checkpoints.validate.expected_weights import EMBEDDING_NAME

TABLE_BITS = 8
TABLE_REMARK = (
    "The table of embedding and output head is rounded to int8 while it is read, as the fast kernels want it; "
    "CHATGLM_KERNEL=exact or torch keeps it as it is stored."
)


def wants_packed_table(config: Any, stored: Mapping[str, StoredTensor], device: torch.device) -> bool:
    """Whether the table, stored as numbers, should become int8: in a quantized network, for the native kernels.

    A token reads all of it: as half over a quarter of the bytes of an int4 ChatGLM-6B, as int8 a sixth. Int8 with a
    scale per row is as exact as the layers of published int8 folders.
    """
    if device.type != "cpu" or not config.quantization_bit or config.quantization_embedding_bit:
        return False
    return stored[EMBEDDING_NAME].dtype.is_floating_point and kernels.backend_name() == "native"


def head_copies(network: Any, stored: Mapping[str, StoredTensor], reader: WeightReader) -> frozenset[str]:
    """Names of the stored tensors of the output head, if the head may be the embedding and equals it byte for byte.

    Empty where the head is not stored, differs, or is to stay a table of its own by `tie_word_embeddings`. The two
    tables, which may be a gigabyte each, are compared by blocks of rows.
    """
    if getattr(network.config, "tie_word_embeddings", True) is False:
        return frozenset()
    embedding = _name_of(network, network.get_input_embeddings())
    head = head_name(network)
    pairs = [(name, embedding + name.removeprefix(head)) for name in stored if name.startswith(f"{head}.")]
    is_copy = all(twin in stored and _is_equal(reader, name, twin, stored) for name, twin in pairs)
    return frozenset(name for name, _ in pairs) if is_copy else frozenset()


def head_name(network: Any) -> str:
    """The name of the output head in the network."""
    return _name_of(network, network.get_output_embeddings())


def share_table(network: Any) -> None:
    """Let the head use the embedding's tensors where it has none of its own; the configuration then says so."""
    embedding, head = network.get_input_embeddings(), network.get_output_embeddings()
    for leaf, tensor in list(head.named_parameters(recurse=False)):
        if tensor.is_meta:
            setattr(head, leaf, getattr(embedding, leaf))
    network.config.tie_word_embeddings = head.weight is embedding.weight


def _name_of(network: nn.Module, wanted: nn.Module) -> str:
    return next(name for name, module in network.named_modules() if module is wanted)


def _is_equal(reader: WeightReader, name: str, twin: str, stored: Mapping[str, StoredTensor]) -> bool:
    if (stored[name].shape, stored[name].dtype) != (stored[twin].shape, stored[twin].dtype):
        return False
    pairs = zip(reader.blocks(name), reader.blocks(twin), strict=True)
    return all(torch.equal(one.view(torch.uint8), other.view(torch.uint8)) for one, other in pairs)
