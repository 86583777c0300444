"""Quantized folders, as `python -m chatglm quantize` and upstream make them, and what is asked of loaded models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from chatglm.checkpoints.validate.expected_weights import expected_shapes
from chatglm.kernels.packing import quantize_rows
from chatglm.loading import LoadedModel, load
from chatglm.models import family_of
from tests.folders import random_tensors, tiny_config, write_config, write_tokenizer, write_weights


def quantized_folder(
    folder: Path,
    bits: int,
    layout: str = "safetensors",
    *,
    tied: bool = True,
    embedding_bits: int = 0,
    group_size: int = 0,
    **changes: Any,
) -> Path:
    """A folder with half scales and biases; the tied embedding is half too, or packed to `embedding_bits`."""
    plain = tiny_config(**changes)
    config = plain | {
        "quantization_bit": bits,
        "quantization_embedding_bit": embedding_bits,
        "quantization_group_size": group_size,
    }
    family = family_of({"model_type": "chatglm"})
    wanted = expected_shapes(family, family.config(config))
    tensors = {}
    for name, tensor in random_tensors(plain, tied=tied).items():
        if f"{name}_scale" in wanted:
            is_embedding = ".layers." not in name
            packed = quantize_rows(tensor, embedding_bits) if is_embedding else quantize_rows(tensor, bits, group_size)
            tensors[name], tensors[f"{name}_scale"] = packed
        else:
            tensors[name] = tensor
    assert all(tensor.dtype in (torch.int8, torch.float16) for tensor in tensors.values())
    write_config(folder, config)
    write_weights(folder, tensors, layout)
    write_tokenizer(folder)
    return folder


def load_cpu(model: Any, **options: Any) -> LoadedModel:
    return load(model, **{"device": "cpu", "dtype": "fp32", **options})


def logits(model: Any) -> torch.Tensor:
    """Of a short prompt, [1, T, V]."""
    config = model.config
    ids = torch.tensor([[200, 201, 202, config.gmask_token_id, config.bos_token_id]])
    with torch.inference_mode():
        return model(ids).logits


def reference(config: dict[str, Any], tensors: dict[str, torch.Tensor], dtype: torch.dtype = torch.float32) -> Any:
    """The same network filled by torch's own load_state_dict."""
    family = family_of({"model_type": "chatglm"})
    model = family.model_class(family.config_class.from_dict(config))
    model.load_state_dict({name: t for name, t in tensors.items() if "inv_freq" not in name})
    return model.to(dtype).eval()
