"""Which base model a trained part belongs to, told by a short fingerprint.

Knows: what quantizing and changing the type leave alone. Does not know what is done with a fingerprint.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch


def base_fingerprint(network: Any) -> str:
    """16 hex digits that an int4, an int8 and a half copy of one model share.

    They are made of sizes and the final norm, which is never quantized; rounded to bfloat16, the coarsest type that
    a copy may be stored in.
    """
    config = network.config
    sizes = (config.vocab_size, config.hidden_size, config.num_layers, config.num_attention_heads)
    norm = network.transformer.final_layernorm
    digest = hashlib.sha256(repr(sizes).encode())
    for tensor in (norm.weight, norm.bias):
        digest.update(tensor.detach().to("cpu", torch.bfloat16).view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]
