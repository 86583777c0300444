"""The families that the conformance suite runs over, and tiny random models of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chatglm.models import FAMILIES, Family, family_of
from tests import folders
from tests.families.glimmer.config import MODEL_TYPE, recognises
from tests.families.glimmer.tokenizer import STOPS, GlimmerTextTokenizer, learn_pieces
from tests.family_tokenizers import (
    tiny_tokenizer,
    write_chatglm2_tokenizer,
    write_chatglm3_tokenizer,
    write_codegeex2_tokenizer,
    write_glm4_tokenizer,
)


@dataclass(frozen=True)
class FamilyCase:
    """A tiny model of a family.

    Attributes:
        keys: of its config.json.
        write_tokenizer: puts the tokenizer files into a folder.
        row: of the registry, for a family that it does not have.
        is_slow: whether the default run leaves it out, since another family shares its network.
    """

    name: str
    keys: Callable[[], Mapping[str, Any]]
    write_tokenizer: Callable[[Path], None]
    row: Family | None = None
    is_slow: bool = False

    def family(self) -> Family:
        """Its row of the registry."""
        return family_of(dict(self.keys()))

    def config(self, **changes: Any) -> Any:
        """The configuration of the tiny model, with changed keys of config.json."""
        return self.family().config({**self.keys(), **changes})

    def random_tensors(self, dtype: torch.dtype = torch.float32, **changes: Any) -> dict[str, Tensor]:
        """Random weights under their stored names; norms are about 1.

        The head is none that is tied: with such weights a tied one would repeat the last token for ever.
        """
        network = self.family().empty_network(self.config(**changes))
        generator = torch.Generator().manual_seed(1)
        tensors = {}
        for name, tensor in network.state_dict().items():
            value = torch.randn(tensor.shape, generator=generator) * 0.1
            tensors[name] = (value + 1 if "norm.weight" in name else value).to(dtype)
        return tensors

    def make_folder(
        self, folder: Path, layout: str = "safetensors", dtype: torch.dtype = torch.float32, **changes: Any
    ) -> dict[str, Tensor]:
        """A whole model folder; returns its tensors."""
        tensors = self.random_tensors(dtype, **changes)
        self.write_folder(folder, tensors, layout, **changes)
        return tensors

    def write_folder(
        self, folder: Path, tensors: dict[str, Tensor], layout: str = "safetensors", **changes: Any
    ) -> None:
        """A model folder of given tensors."""
        folders.write_config(folder, {**self.keys(), **changes})
        folders.write_weights(folder, tensors, layout)
        self.write_tokenizer(folder)


@cache
def glimmer_tokenizer() -> GlimmerTextTokenizer:
    """320 ids: bytes, pairs, special tokens."""
    return GlimmerTextTokenizer(
        learn_pieces(["hello world, how are you", "你好，世界。", "the quick brown fox"] * 3, 312)
    )


def glimmer_keys() -> dict[str, Any]:
    """The config.json of a tiny Glimmer model: H * D is not C, and G is not H."""
    tokenizer = glimmer_tokenizer()
    return {
        "model_type": MODEL_TYPE,
        "padded_vocab_size": tokenizer.vocab_size,
        "hidden_size": 64,
        "num_layers": 3,
        "num_attention_heads": 4,
        "multi_query_group_num": 2,
        "kv_channels": 8,
        "ffn_hidden_size": 96,
        "seq_length": 128,
        "eos_token_id": [tokenizer.special_id(name) for name in STOPS],
        "pad_token_id": tokenizer.pad_token_id,
    }


def chatglm_keys() -> dict[str, Any]:
    """The config.json of a tiny ChatGLM-6B."""
    return folders.tiny_config(
        num_layers=3, hidden_size=64, inner_hidden_size=96, max_sequence_length=128, torch_dtype="float32"
    )


def later_keys(name: str, *other_ends: str, **changes: Any) -> Callable[[], dict[str, Any]]:
    """The config.json of a tiny model of a family since ChatGLM2-6B: H * D is not C, and G is not H."""

    def keys() -> dict[str, Any]:
        tokenizer = tiny_tokenizer(name)
        return {
            "model_type": "chatglm",
            "_name_or_path": f"somebody/{name}",
            "torch_dtype": "float32",
            "padded_vocab_size": -(-tokenizer.vocab_size // 8) * 8,
            "hidden_size": 64,
            "num_layers": 3,
            "num_attention_heads": 4,
            "multi_query_attention": True,
            "multi_query_group_num": 2,
            "kv_channels": 8,
            "ffn_hidden_size": 96,
            "add_qkv_bias": True,
            "seq_length": 128,
            "eos_token_id": [tokenizer.eos_token_id, *(tokenizer.special_id(name) for name in other_ends)],
            "pad_token_id": tokenizer.pad_token_id,
            **changes,
        }

    return keys


CASES: tuple[FamilyCase, ...] = (
    FamilyCase("chatglm", chatglm_keys, folders.write_tokenizer),
    FamilyCase("chatglm2", later_keys("chatglm2"), write_chatglm2_tokenizer, is_slow=True),
    FamilyCase(
        "chatglm3", later_keys("chatglm3", "<|user|>", "<|observation|>"), write_chatglm3_tokenizer, is_slow=True
    ),
    FamilyCase("codegeex2", later_keys("codegeex2", rotary_percent=0.5), write_codegeex2_tokenizer, is_slow=True),
    FamilyCase(
        "glm4",
        later_keys("glm4", "<|user|>", "<|observation|>", rope_ratio=500, layernorm_epsilon=1.5625e-07),
        write_glm4_tokenizer,
    ),
    FamilyCase(
        "glimmer",
        glimmer_keys,
        lambda folder: glimmer_tokenizer().save(folder),
        Family("Glimmer", recognises, "tests.families.glimmer", "Glimmer", MODEL_TYPE),
        is_slow=True,
    ),
)


def register() -> None:
    """Add the rows that the registry does not have, the most specific first."""
    FAMILIES[:0] = [case.row for case in CASES if case.row is not None and case.row not in FAMILIES]


def unregister() -> None:
    """Take them out again."""
    FAMILIES[:] = [row for row in FAMILIES if all(row is not case.row for case in CASES)]
