"""Model folders of any size with random weights, written straight in the quantized format in seconds.

Knows: which tensors a configuration asks for, and that speed does not depend on their values. Does not know how they
are used.
"""

from __future__ import annotations

import json
import math
import struct
from functools import cache
from pathlib import Path
from typing import Any

import torch

from chatglm.models import family_of
from tests.folders import tiny_config, write_config, write_tokenizer

SIZES_6B = {
    "vocab_size": 130528,
    "hidden_size": 4096,
    "inner_hidden_size": 16384,
    "num_attention_heads": 32,
    "max_sequence_length": 2048,
}
TYPES = {torch.int8: "I8", torch.float16: "F16"}
BLOCK_BYTES = 1 << 24
SCALE = 0.002


def write_folder(folder: Path, num_layers: int, **keys: Any) -> None:
    """Write a folder with the sizes of ChatGLM-6B but for its depth and what `keys` say; the head is not stored, it is
    the embedding.

    Args:
        folder: exists and is empty.
        num_layers: L.
        **keys: of config.json; those of quantization choose the format, those of sizes go before the usual ones.
    """
    config = tiny_config(**{**SIZES_6B, "num_layers": num_layers, **keys})
    write_config(folder, config)
    write_tokenizer(folder)
    family = family_of({"model_type": "chatglm"})
    network = family.empty_network(family.config(config))
    tensors = {
        name: (list(tensor.shape), torch.int8 if tensor.dtype == torch.int8 else torch.float16)
        for name, tensor in network.state_dict().items()
        if not name.startswith("lm_head.")
    }
    with (folder / "model.safetensors").open("wb") as file:
        file.write(_header(tensors))
        for name, (shape, dtype) in tensors.items():
            _write_values(file, name, dtype, math.prod(shape) * dtype.itemsize)


def _header(tensors: dict[str, tuple[list[int], torch.dtype]]) -> bytes:
    entries, offset = {}, 0
    for name, (shape, dtype) in tensors.items():
        end = offset + math.prod(shape) * dtype.itemsize
        entries[name] = {"dtype": TYPES[dtype], "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 64)  # values begin at whole cache lines
    return struct.pack("<Q", len(text)) + text


def _write_values(file: Any, name: str, dtype: torch.dtype, size: int) -> None:
    data = memoryview(_block(name, dtype).numpy()).cast("B")
    for start in range(0, size, BLOCK_BYTES):
        file.write(data[: min(BLOCK_BYTES, size - start)])


def _block(name: str, dtype: torch.dtype) -> torch.Tensor:
    """Values to repeat: norms of 1, biases of 0, equal scales and random integers keep numbers ordinary."""
    count = BLOCK_BYTES // dtype.itemsize
    if name.endswith(".weight_scale"):
        return torch.full((count,), SCALE, dtype=dtype)
    if "layernorm.weight" in name:
        return torch.ones(count, dtype=dtype)
    if name.endswith(".bias"):
        return torch.zeros(count, dtype=dtype)
    return _random_block(dtype)


@cache
def _random_block(dtype: torch.dtype) -> torch.Tensor:
    if dtype == torch.int8:
        return torch.randint(-128, 128, (BLOCK_BYTES,), dtype=dtype)
    return torch.randn(BLOCK_BYTES // dtype.itemsize).mul_(0.02).to(dtype)
