"""Reads golden cases and compares with their bounds."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from chatglm.models import FAMILIES

GOLDEN = Path(__file__).parent
FLOAT32_BOUND = 8e-6
GRADIENT_BOUND = 2e-5


def facts(folder: str, case: str) -> dict[str, Any]:
    return json.loads((GOLDEN / folder / f"{case}.json").read_text(encoding="utf-8"))


def tensors(folder: str, case: str) -> dict[str, Tensor]:
    return load_file(GOLDEN / folder / f"{case}.safetensors")


def family_named(name: str) -> Any:
    """The row of the registry for the start of a folder's name."""
    package = next(word for word in ("chatglm2", "chatglm3", "codegeex2", "glm4", "chatglm") if word in name)
    return next(family for family in FAMILIES if family.package == f"chatglm.models.{package}")


def build(folder: str, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """The tiny model of a folder, with its golden weights."""
    config = json.loads((GOLDEN / folder / "config.json").read_text(encoding="utf-8"))
    family = family_named(folder)
    model = family.model_class(family.config_class(**{**config, **changes}))
    weights = {k: v for k, v in load_file(GOLDEN / folder / "weights.safetensors").items() if "inv_freq" not in k}
    model.load_state_dict(weights, strict=True)
    return model.to(dtype).eval()


def assert_close(ours: Tensor, golden: Tensor, bound: float = FLOAT32_BOUND) -> None:
    assert ours.shape == golden.shape
    limit = bound * max(1.0, float(golden.abs().max()))
    assert float((ours - golden).abs().max()) <= limit


def fill_by_formula(network: Any, golden: dict[str, Any]) -> None:
    """Give a network the weights of a golden that stores none, and compare those that it names."""
    state = network.state_dict()
    network.load_state_dict({name: _formula(golden["seed"], name, tensor.shape) for name, tensor in state.items()})
    for name, (first, second, last, total) in golden["weights_check_first_second_last_sum"].items():
        flat = network.get_parameter(name).detach().flatten().double()
        assert flat[[0, 1, -1]].tolist() == [first, second, last]
        assert abs(float(flat.sum()) - total) <= 1e-6 * flat.numel()


def _formula(seed: int, name: str, shape: torch.Size) -> Tensor:
    """A hash of seed, name and flat index, scaled by the first matching rule."""
    x = np.arange(int(np.prod(shape)), dtype=np.uint32) * np.uint32(0x9E3779B1)
    x += np.uint32(zlib.crc32(f"{seed}:{name}".encode()))
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x ^= x >> np.uint32(shift)
        x *= np.uint32(factor)
    x ^= x >> np.uint32(16)
    offset, scale = _rule(name)
    values = np.float32(offset) + (scale * (x.astype(np.float64) / 2**31 - 1)).astype(np.float32)
    return torch.from_numpy(values.reshape(shape))


def _rule(name: str) -> tuple[float, float]:
    if "norm" in name and name.endswith("weight"):
        return 1.0, 0.25
    if name.endswith("bias"):
        return 0.0, 0.25
    if "word_embeddings" in name:
        return 0.0, 1.0
    return 0.0, 1.5 if "lm_head" in name or "output_layer" in name else 0.4


def sequence_first(cache: Any, layer: int) -> tuple[Tensor, Tensor]:
    """A layer's keys and values as the original stores them: [S, B, H, D]."""
    key, value = cache.layers[layer].keys, cache.layers[layer].values
    return key.permute(2, 0, 1, 3), value.permute(2, 0, 1, 3)
