"""The tied embedding: one tensor for input embedding and output head, which published folders store twice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from chatglm import kernels
from chatglm.checkpoints import StoredTensor, WeightReader
from chatglm.model_spec import ModelSpec

EMBEDDING_BITS = 8


def may_tie(network: Any) -> bool:
    """Whether head and embedding become one tensor where the files hold only one, or two equal ones."""
    return network.spec.ties_embedding and getattr(network.config, "tie_word_embeddings", True) is not False


def wants_packed_embedding(
    config: Any, spec: ModelSpec, stored: Mapping[str, StoredTensor], device: torch.device
) -> bool:
    """Whether a float embedding becomes int8 (exact enough per row): in a quantized network with native kernels.

    Each token reads all of it: a quarter of the bytes of an int4 ChatGLM-6B.
    """
    if device.type != "cpu" or not config.quantization_bit or config.quantization_embedding_bit:
        return False
    return stored[spec.embedding_weight].dtype.is_floating_point and kernels.backend_name() == "native"


def head_copies(network: Any, stored: Mapping[str, StoredTensor], reader: WeightReader) -> frozenset[str]:
    """Names of the stored head tensors, if the head may be tied and equals the embedding byte for byte."""
    if not may_tie(network):
        return frozenset()
    embedding, head = network.spec.embedding, network.spec.head
    pairs = [(name, embedding + name.removeprefix(head)) for name in stored if name.startswith(f"{head}.")]
    is_copy = all(twin in stored and _is_equal(reader, name, twin, stored) for name, twin in pairs)
    return frozenset(name for name, _ in pairs) if is_copy else frozenset()


def tie_embedding(network: Any) -> None:
    """Let the head use the embedding's tensors where it has none of its own; the configuration then says so."""
    embedding, head = (network.get_submodule(name) for name in (network.spec.embedding, network.spec.head))
    for leaf, tensor in list(head.named_parameters(recurse=False)):
        if tensor.is_meta:
            setattr(head, leaf, getattr(embedding, leaf))
    network.config.tie_word_embeddings = head.weight is embedding.weight


def _is_equal(reader: WeightReader, name: str, twin: str, stored: Mapping[str, StoredTensor]) -> bool:
    if (stored[name].shape, stored[name].dtype) != (stored[twin].shape, stored[twin].dtype):
        return False
    pairs = zip(reader.blocks(name), reader.blocks(twin), strict=True)
    return all(torch.equal(one.view(torch.uint8), other.view(torch.uint8)) for one, other in pairs)
