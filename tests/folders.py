"""Makes model folders on disk: tiny random networks in every layout in which weights are published.

Knows: file layouts, config keys, a tokenizer of a few hundred pieces. Does not know what a test does with them.
"""

from __future__ import annotations

import io
import json
from functools import cache
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from safetensors.torch import save_file

from chatglm.models import family_of

SPECIALS = {
    "bos_token_id": "<sop>",
    "eos_token_id": "<eop>",
    "mask_token_id": "[MASK]",
    "gmask_token_id": "[gMASK]",
    "pad_token_id": "<pad>",
}
TOKENIZER_CONFIG = {
    "tokenizer_class": "ChatGLMTokenizer",
    "bos_token": "<sop>",
    "eos_token": "<eop>",
    "end_token": "</s>",
    "gmask_token": "[gMASK]",
    "mask_token": "[MASK]",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "padding_side": "left",
    "num_image_tokens": 0,
}
LAYOUTS = ("safetensors", "safetensors_shards", "bin", "bin_shards", "bin_old")

Tensors = dict[str, torch.Tensor]


@cache
def tokenizer_bytes() -> bytes:
    """A SentencePiece file with the fixed pieces of ChatGLM-6B and little else."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["你好，世界。", "hello world, how are you", "天气很好", "the quick brown fox"] * 5),
        model_writer=model,
        model_type="bpe",
        vocab_size=420,
        hard_vocab_limit=False,
        byte_fallback=True,
        pad_id=3,
        user_defined_symbols=["<n>", "<|tab|>", *(f"<|blank_{i}|>" for i in range(2, 81))],
        control_symbols=["[MASK]", "[gMASK]", "[sMASK]", "<unused_0>", "<sop>", "<eop>"],
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


@cache
def _pieces() -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=tokenizer_bytes())


def tiny_config(**changes: Any) -> dict[str, Any]:
    """The config.json of a network of a few thousand parameters that fits the tiny tokenizer."""
    config: dict[str, Any] = {
        "architectures": ["ChatGLMModel"],
        "auto_map": {"AutoConfig": "configuration_chatglm.ChatGLMConfig"},
        "model_type": "chatglm",
        "torch_dtype": "float16",
        "transformers_version": "4.27.1",
        "vocab_size": _pieces().get_piece_size() + 8,
        "hidden_size": 32,
        "num_layers": 2,
        "num_attention_heads": 4,
        "inner_hidden_size": 64,
        "layernorm_epsilon": 1e-05,
        "max_sequence_length": 64,
        "position_encoding_2d": True,
    }
    config |= {key: _pieces().piece_to_id(piece) for key, piece in SPECIALS.items()}
    return config | changes


def random_tensors(config: dict[str, Any], dtype: torch.dtype = torch.float16, *, tied: bool = True) -> Tensors:
    """Random weights of a network, with the rotary tables that published files also store."""
    family = family_of({"model_type": "chatglm"})
    with torch.device("meta"):
        network = family.model_class(family.config_class.from_dict(config))
    generator = torch.Generator().manual_seed(1)
    tensors = {
        name: torch.randn(tensor.shape, generator=generator).mul_(0.1).to(dtype)
        for name, tensor in network.state_dict().items()
    }
    if tied:
        tensors["lm_head.weight"] = tensors["transformer.word_embeddings.weight"].clone()
    for layer in range(config["num_layers"]):
        tensors[f"transformer.layers.{layer}.attention.rotary_emb.inv_freq"] = torch.ones(2, dtype=dtype)
    return tensors


def write_weights(folder: Path, tensors: Tensors, layout: str) -> None:
    """Write `tensors` in one of `LAYOUTS`; sharded layouts have 8 shards and an index, as published."""
    folder.mkdir(parents=True, exist_ok=True)
    if layout == "safetensors":
        save_file(tensors, folder / "model.safetensors")
    elif layout == "bin":
        torch.save(tensors, folder / "pytorch_model.bin")
    elif layout == "bin_old":
        torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    elif layout == "bin_shards":
        _write_shards(folder, tensors, "pytorch_model", "bin", torch.save)
    else:
        _write_shards(folder, tensors, "model", "safetensors", save_file)


def _write_shards(folder: Path, tensors: Tensors, stem: str, suffix: str, save: Any, count: int = 8) -> None:
    weight_map = {}
    names = list(tensors)
    for number in range(count):
        mine = names[number * len(names) // count : (number + 1) * len(names) // count]
        file = f"{stem}-{number + 1:05d}-of-{count:05d}.{suffix}"
        save({name: tensors[name] for name in mine}, folder / file)
        weight_map |= dict.fromkeys(mine, file)
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index), encoding="utf-8")


def write_config(folder: Path, config: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def write_tokenizer(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ice_text.model").write_bytes(tokenizer_bytes())
    (folder / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG), encoding="utf-8")


def make_folder(
    folder: Path,
    layout: str = "bin_shards",
    *,
    dtype: torch.dtype = torch.float16,
    tied: bool = True,
    **changes: Any,
) -> Tensors:
    """A whole model folder; returns its tensors. `changes` go into config.json before the weights are made."""
    config = tiny_config(**changes)
    tensors = random_tensors(config, dtype, tied=tied)
    write_config(folder, config)
    write_weights(folder, tensors, layout)
    write_tokenizer(folder)
    return tensors


def change_config(folder: Path, **changes: Any) -> None:
    """Change keys of an existing config.json; None removes one."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | changes
    write_config(folder, {key: value for key, value in config.items() if value is not None})


def make_pointer(path: Path, size_bytes: int = 1_740_651_802) -> None:
    """Put a Git-LFS pointer in the place of `path`."""
    path.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize {size_bytes}\n")


def cut(path: Path, keep: float = 0.5) -> None:
    """Keep the first part of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
