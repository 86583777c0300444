"""A LoRA adapter as peft saves it (peft is not needed): two small tensors per layer, and a JSON file.

base_model.model.transformer.layers.0.attention.query_key_value.lora_A.weight     [r, I]; lora_B: [O, r]
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from chatglm.checkpoints import StoredTensor, WeightFiles, iter_tensors, list_file, read_json
from chatglm.checkpoints.folder import folder_error
from chatglm.errors import MismatchError, UnsupportedModelError
from chatglm.nn.lora import LowRankLinear, updated

CHECK_THE_FLAG = "请检查 --lora-checkpoint。Check --lora-checkpoint."
CONFIG_NAME = "adapter_config.json"
WEIGHT_NAMES = ("adapter_model.safetensors", "adapter_model.bin")
NAME = re.compile(r"base_model\.model\.(?P<layer>.+)\.lora_(?P<part>[AB])(?:\.default)?\.weight")
# Kinds of updates that are more than a product of two matrices.
UNSUPPORTED = ("use_dora", "modules_to_save", "fan_in_fan_out", "layer_replication", "trainable_token_indices")


@dataclass(frozen=True)
class StoredLora:
    """An adapter on disk: (layer, "A" or "B") -> tensor name, what the file holds, and layer -> factor of its B A."""

    path: Path
    tensors: Mapping[tuple[str, str], str]
    listed: Mapping[str, StoredTensor]
    scales: Mapping[str, float]

    def size_bytes(self, dtype: torch.dtype) -> int:
        """What it takes when attached to a network of this type."""
        return dtype.itemsize * sum(math.prod(self.listed[name].shape) for name in self.tensors.values())

    def read(self) -> dict[tuple[str, str], Tensor]:
        """(layer, "A" or "B") -> value, as stored."""
        values = dict(iter_tensors(WeightFiles((self.path,))))
        return {place: values[name] for place, name in self.tensors.items()}


def find_lora(path: str | Path) -> StoredLora:
    """The adapter in the folder `path`.

    Raises ModelNotFoundError, MissingFileError, PointerFileError or DamagedFileError for folder and files,
    MismatchError for no adapter or half of one, UnsupportedModelError for one of another kind.
    """
    folder = Path(path).expanduser()
    if (error := folder_error(folder, CHECK_THE_FLAG)) is not None:
        raise error
    file = next((folder / name for name in WEIGHT_NAMES if (folder / name).exists()), None)
    if file is None or not (folder / CONFIG_NAME).exists():
        raise MismatchError(
            f"{folder} holds no LoRA update ({CONFIG_NAME} with {WEIGHT_NAMES[0]}).",
            "Give a folder that LoRA training wrote; a whole model goes to --model.",
        )
    config, listed = read_json(folder / CONFIG_NAME), list_file(file)
    _check_kind(folder, config)
    tensors: dict[tuple[str, str], str] = {}
    for name in listed:
        match = NAME.fullmatch(name)
        if match is None:
            raise UnsupportedModelError(f"{file} holds {name}, which is no part of a plain LoRA update.")
        tensors[match["layer"], match["part"]] = name
    layers = sorted({layer for layer, _ in tensors})
    halved = next((layer for layer in layers for part in "AB" if (layer, part) not in tensors), None)
    if halved is not None or not layers:
        raise MismatchError(f"{file} holds only half of the update of {halved}.", "Copy the folder again.")
    return StoredLora(file, tensors, listed, {layer: _scale(layer, config, folder) for layer in layers})


def check_lora_fits(network: Any, lora: StoredLora) -> None:
    """Raise MismatchError unless a network, which may be without memory, has a layer of the right size for each."""
    modules = dict(network.named_modules())
    for layer in lora.scales:
        linear = modules.get(layer)
        have = (getattr(linear, "out_features", None), getattr(linear, "in_features", None))
        down, up = (lora.listed[lora.tensors[layer, part]].shape for part in "AB")
        want = (*up[:1], *down[1:])
        if linear is None or have != want or down[:1] != up[1:]:
            raise MismatchError(
                f"The LoRA update in {lora.path} does not fit this base model: it is for a layer {layer} of "
                f"{list(want)}, but the base model has {'none' if linear is None else list(have)}.",
                "Give the base model that it was trained on.",
            )


def attach_lora(network: Any, lora: StoredLora, dtype: torch.dtype) -> None:
    """Attach an adapter that fits to a filled network; it is computed in `dtype`."""
    modules = dict(network.named_modules())
    embedding = modules[network.spec.embedding]
    for layer, down, up in _scaled(lora):
        linear = modules[layer]
        weight = next(linear.parameters())
        device = embedding.weight.device if weight.is_meta else weight.device  # weights of streamed layers are empty
        owner, _, leaf = layer.rpartition(".")
        setattr(modules[owner], leaf, LowRankLinear(linear, down.to(device, dtype), up.to(device, dtype)))
    _update_tie(network)


def merge_lora(network: Any, lora: StoredLora) -> None:
    """Merge an adapter into weights that are not packed, untying a tied head; raises as `check_lora_fits`."""
    check_lora_fits(network, lora)
    for layer, down, up in _scaled(lora):
        linear = network.get_submodule(layer)
        linear.weight = nn.Parameter(updated(linear.weight, down, up), requires_grad=linear.weight.requires_grad)
    _update_tie(network)


def _update_tie(network: Any) -> None:
    head, embedding = (network.get_submodule(name) for name in (network.spec.head, network.spec.embedding))
    network.config.tie_word_embeddings = getattr(head, "weight", None) is embedding.weight


def _scaled(lora: StoredLora) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(layer, A, B times its scale), both in float32."""
    values = lora.read()
    for layer, scale in lora.scales.items():
        yield layer, values[layer, "A"].float(), values[layer, "B"].float() * scale


def _check_kind(folder: Path, config: dict[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise UnsupportedModelError(f"{folder / CONFIG_NAME} describes {kind!r}, not LORA.")
    for name in UNSUPPORTED:
        if config.get(name):
            raise UnsupportedModelError(f"{folder} was trained with {name}, which cannot be loaded here.")


def _scale(layer: str, config: dict[str, Any], folder: Path) -> float:
    try:
        rank = _of_pattern(config.get("rank_pattern"), layer, config["r"])
        alpha = _of_pattern(config.get("alpha_pattern"), layer, config["lora_alpha"])
        return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else float(rank))
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        raise MismatchError(
            f"{folder / CONFIG_NAME} does not say r and lora_alpha.", "Copy the folder again."
        ) from None


def _of_pattern(pattern: dict[str, Any] | None, layer: str, usual: Any) -> Any:
    """What peft's rank_pattern or alpha_pattern says of a layer: the first key that ends its name."""
    matching = (value for key, value in (pattern or {}).items() if layer == key or layer.endswith(f".{key}"))
    return next(matching, usual)
