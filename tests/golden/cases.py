"""Reads golden cases and compares with their bounds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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


def sequence_first(cache: Any, layer: int) -> tuple[Tensor, Tensor]:
    """A layer's keys and values as the original stores them: [S, B, H, D]."""
    key, value = cache.layers[layer].keys, cache.layers[layer].values
    return key.permute(2, 0, 1, 3), value.permute(2, 0, 1, 3)
