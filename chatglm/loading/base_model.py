"""Which base model an adapter was trained on, as training here notes it in the header of the adapter's file."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch

from chatglm.checkpoints import read_notes


def base_fingerprint(network: Any) -> str:
    """16 hex digits that int4, int8 and half copies of a model share: of its sizes and final norm (as bfloat16)."""
    spec = network.spec
    digest = hashlib.sha256(repr((spec.vocab_size, spec.hidden_size, spec.num_layers, spec.num_heads)).encode())
    for tensor in network.get_submodule(spec.final_norm).parameters():
        digest.update(tensor.detach().to("cpu", torch.bfloat16).view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]


def base_warning(kind: str, path: Path, network: Any) -> str:
    """A warning if the adapter in `path` notes another base model than this network, else ""."""
    notes = read_notes(path)
    if notes.get("base_fingerprint") in (None, base_fingerprint(network)):
        return ""
    return (
        f"The {kind} in {path} was trained on another base model ({notes.get('base', 'unnamed')}): it fits by its "
        "shape, but answers may be worse for it."
    )
