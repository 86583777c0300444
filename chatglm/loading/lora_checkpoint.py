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

from chatglm.checkpoints import StoredTensor, WeightFiles, iter_tensors, list_file
from chatglm.checkpoints.folder import folder_error
from chatglm.errors import DamagedFileError, MismatchError, UnsupportedModelError
from chatglm.loading.lora_config import CONFIG_NAME, COPY_AGAIN, MERGE, LoraConfig
from chatglm.nn.lora import LowRankLinear, updated

CHECK_THE_FLAG = "请检查 --lora-checkpoint。Check --lora-checkpoint."
WEIGHT_NAMES = ("adapter_model.safetensors", "adapter_model.bin")
NAME = re.compile(r"base_model\.model\.(?P<layer>.+)\.lora_(?P<part>[AB])\.weight")
ONE_FOLDER = "Take both files from one folder that peft wrote."


@dataclass(frozen=True)
class StoredLora:
    """An adapter on disk: (layer, "A" or "B") -> tensor name, what the file holds, and layer -> factor of its B A."""

    path: Path
    config: LoraConfig
    tensors: Mapping[tuple[str, str], str]
    listed: Mapping[str, StoredTensor]
    scales: Mapping[str, float]

    def rank(self, layer: str) -> int:
        return self.listed[self.tensors[layer, "A"]].shape[0]

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
    MismatchError for no adapter or half of one, UnsupportedModelError for one that is more than plain LoRA.
    """
    folder = Path(path).expanduser()
    if (error := folder_error(folder, CHECK_THE_FLAG)) is not None:
        raise error
    file = next((folder / name for name in WEIGHT_NAMES if (folder / name).exists()), None)
    if file is None or not (folder / CONFIG_NAME).exists():
        inner = sorted(folder.glob(f"*/{CONFIG_NAME}"), key=lambda path: path.stat().st_mtime)
        raise MismatchError(
            f"{folder} holds no LoRA update ({CONFIG_NAME} with {WEIGHT_NAMES[0]}).",
            f"Did you mean {inner[-1].parent}?"
            if inner
            else "Give a folder that LoRA training wrote; a whole model goes to --model.",
        )
    config, listed = LoraConfig.read(folder), list_file(file)
    _check_saved_whole(file, listed)
    tensors = _parts(file, listed)
    layers = sorted({layer for layer, _ in tensors})
    halved = next((layer for layer in layers for part in "AB" if (layer, part) not in tensors), None)
    if halved is not None:
        raise MismatchError(f"{file} holds only half of the update of {halved}.", COPY_AGAIN)
    settings = config.ranks_and_scales(layers)
    for layer, (rank, _) in settings.items():
        stored = listed[tensors[layer, "A"]].shape[0]
        if stored != rank:
            raise MismatchError(
                f"{config.path} says rank {rank} for {layer}, but {file.name} holds rank {stored}.", ONE_FOLDER
            )
    return StoredLora(file, config, tensors, listed, {layer: scale for layer, (_, scale) in settings.items()})


def _check_saved_whole(file: Path, listed: Mapping[str, StoredTensor]) -> None:
    if not listed:
        raise DamagedFileError(
            f"{file} holds no tensors: the update was not saved.",
            "Take an earlier checkpoint of that training, or train again without replacing `model.state_dict` in the "
            "script: since peft 0.3 that leaves such files of 443 bytes.",
        )
    flat = [
        name for name, tensor in listed.items() if ".lora_" in name and (len(tensor.shape) < 2 or 0 in tensor.shape)
    ]
    if flat:
        raise DamagedFileError(
            f"{file} holds only parts of the update: {len(flat)} of {len(listed)} tensors are empty or flat "
            f"({flat[0]} {list(listed[flat[0]].shape)}), as DeepSpeed ZeRO-3 and FSDP leave them in one process.",
            "Collect them with the zero_to_fp32.py of the checkpoint, or train again and gather them before saving "
            "(DeepSpeed: stage3_gather_16bit_weights_on_model_save).",
        )


def _parts(file: Path, listed: Mapping[str, StoredTensor]) -> dict[tuple[str, str], str]:
    """(layer, "A" or "B") -> tensor name; raises UnsupportedModelError for other tensors."""
    tensors: dict[tuple[str, str], str] = {}
    for name, stored in listed.items():
        match = NAME.fullmatch(name)
        if match is None and ".default." in name:
            raise UnsupportedModelError(
                f"{file} holds {name}, a name that only a model in memory has; peft itself would leave it out.",
                "Save the adapter with save_pretrained(), or take `.default` out of the names.",
            )
        if match is None or not stored.dtype.is_floating_point or len(stored.shape) != 2:
            raise UnsupportedModelError(f"{file} holds {name}, which is no part of a plain LoRA update.", MERGE)
        tensors[match["layer"], match["part"]] = name
    return tensors


def check_lora_fits(network: Any, lora: StoredLora) -> None:
    """Raise MismatchError unless a network, which may be without memory, has a layer of the right size for each, and
    these are the layers that the config names: what else it names peft would begin anew, what it does not, leave out.
    """
    modules = dict(network.named_modules())
    linears = [name for name, module in modules.items() if hasattr(module, "in_features") and name != network.spec.head]
    targets = lora.config.targets([name for name in modules if name], linears)
    differing = sorted(modules.keys() & (targets ^ lora.scales.keys()))
    if differing:
        has, lacks = (lora.config.path, lora.path) if differing[0] in targets else (lora.path, lora.config.path)
        raise MismatchError(
            f"{has} has an update for {differing[0]}, but {lacks.name} has none ({len(differing)} such layers).",
            ONE_FOLDER,
        )
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
