"""Networks of any size with random weights, made on their device in seconds, in the format they run in.

Knows: that speed does not depend on the values, as long as they are random and numbers stay ordinary. Does not know
what is measured.
"""

from __future__ import annotations

from typing import Any

import torch

from chatglm.kernels.packing import largest
from chatglm.models import family_of

SIZES_6B = {
    "vocab_size": 130528,
    "hidden_size": 4096,
    "inner_hidden_size": 16384,
    "num_attention_heads": 32,
    "num_layers": 28,
    "max_sequence_length": 2048,
}
SIZES_TINY = {
    "vocab_size": 1000,
    "hidden_size": 256,
    "inner_hidden_size": 1024,
    "num_attention_heads": 4,
    "num_layers": 2,
    "max_sequence_length": 256,
    "bos_token_id": 990,
    "gmask_token_id": 991,
    "mask_token_id": 992,
    "pad_token_id": 3,
}
DEVIATION = 0.02


def device_network(
    sizes: dict[str, int], bits: int, head_bits: int, device: torch.device, dtype: torch.dtype, seed: int = 0
) -> Any:
    """A network in eval mode.

    Args:
        sizes: of its configuration.
        bits: of the layers' weights: 4, 8, or 16 for `dtype`.
        head_bits: of embedding and head: 8, or 16.
        device: where everything is made.
        dtype: of what is not packed.
        seed: of the weights.
    """
    torch.manual_seed(seed)
    packed = {"quantization_bit": bits if bits < 16 else 0, "quantization_embedding_bit": 8 if head_bits == 8 else 0}
    family = family_of({"model_type": "chatglm"})
    # An end that never comes: answers have exactly the length asked for.
    network = family.empty_network(family.config({**sizes, **packed, "eos_token_id": sizes["vocab_size"] - 1}))
    network = network.to_empty(device=device).eval().requires_grad_(False)
    network = network.to(dtype)
    with torch.no_grad():
        for name, tensor in network.named_parameters():
            _fill(name, tensor, head_bits if "word_embeddings" in name or "lm_head" in name else bits)
    return network


def _fill(name: str, tensor: torch.Tensor, bits: int) -> None:
    if tensor.dtype == torch.int8:
        tensor.random_(-128, 128)
    elif name.endswith("weight_scale"):
        # Random bytes spread evenly over the integers have half their largest as deviation, or a little more.
        tensor.fill_(DEVIATION / (0.58 * largest(bits)))
    elif "layernorm.weight" in name:
        tensor.fill_(1)
    elif name.endswith("bias"):
        tensor.zero_()
    else:
        tensor.normal_(0, DEVIATION)
