"""LoRA updates of random values: as a folder, and beside the layers of a network.

Knows: how peft names what it writes. Does not know what is tested with them.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from chatglm.nn.lora import LowRankLinear

LAYERS = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")


def random_update(
    network: Any, strength: float, names: Collection[str] = LAYERS, rank: int = 2
) -> dict[str, tuple[Tensor, Tensor]]:
    """Name of a layer -> (A [r, I], B [O, r]), for every layer whose own name is among `names`."""
    generator = torch.Generator().manual_seed(4)
    return {
        name: (
            torch.randn(rank, layer.in_features, generator=generator),
            strength * torch.randn(layer.out_features, rank, generator=generator),
        )
        for name, layer in network.named_modules()
        if name.rpartition(".")[2] in names
    }


def write_update(folder: Path, update: dict[str, tuple[Tensor, Tensor]], scale: float = 2.0) -> Path:
    """A folder as peft writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    start = "base_model.model."
    tensors = {}
    for name, (down, up) in update.items():
        tensors |= {f"{start}{name}.lora_A.weight": down, f"{start}{name}.lora_B.weight": up}
    save_file(tensors, folder / "adapter_model.safetensors")
    rank = next(iter(update.values()))[0].shape[0]
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank * scale, "target_modules": sorted(update)}
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def attach_lora(network: Any, update: dict[str, tuple[Tensor, Tensor]]) -> Any:
    """The network, with the update beside its layers."""
    dtype = network.transformer.final_layernorm.weight.dtype
    for name, (down, up) in update.items():
        owner, _, leaf = name.rpartition(".")
        linear = network.get_submodule(name)
        layer = LowRankLinear(linear, down.to(dtype), up.to(dtype))
        for part in ("down", "up"):  # afterwards, since pretended devices can be moved to and not computed on
            value = getattr(layer, part).detach().to(linear.weight.device)
            setattr(layer, part, nn.Parameter(value, requires_grad=False))
        setattr(network.get_submodule(owner), leaf, layer)
    return network
