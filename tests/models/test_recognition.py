"""Which family a folder is of: published keys, with and without what names them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from chatglm.errors import InvalidRequestError, UnsupportedModelError
from chatglm.models import family_of
from chatglm.models.chatglm2.config import ChatGLM2NetworkConfig

# The keys of published config.json files that matter; all have model_type "chatglm".
LATER = {"padded_vocab_size": 65024, "multi_query_attention": True, "multi_query_group_num": 2, "kv_channels": 128}
PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "THUDM/chatglm-6b": ("ChatGLM-6B", {"position_encoding_2d": True, "inner_hidden_size": 16384}),
    "THUDM/chatglm2-6b": ("ChatGLM2-6B", {**LATER, "seq_length": 32768}),
    "THUDM/chatglm2-6b-32k": ("ChatGLM2-6B", {**LATER, "seq_length": 32768, "rope_ratio": 16}),
    "THUDM/chatglm3-6b": ("ChatGLM3-6B", {**LATER, "seq_length": 8192}),
    "THUDM/chatglm3-6b-32k": ("ChatGLM3-6B", {**LATER, "seq_length": 32768, "rope_ratio": 50}),
    "THUDM/chatglm3-6b-128k": ("ChatGLM3-6B", {**LATER, "seq_length": 131072, "rope_ratio": 500}),
    "THUDM/codegeex2-6b": ("CodeGeeX2-6B", {**LATER, "seq_length": 8192, "rotary_percent": 0.5}),
    "THUDM/glm-4-9b-chat": ("GLM-4-9B", {**LATER, "padded_vocab_size": 151552, "rope_ratio": 500}),
    "THUDM/glm-4-9b-chat-1m": ("GLM-4-9B", {**LATER, "padded_vocab_size": 151552, "rope_ratio": 10000}),
}


@pytest.mark.parametrize("path", PUBLISHED)
@pytest.mark.parametrize("named", ["as published", None, "/models/glm-4-tuning/codegeex2-6b/x", "D:\\chatglm2\\mine"])
def test_published_keys(path: str, named: str | None) -> None:
    """No path but the name of a repository changes anything."""
    name, keys = PUBLISHED[path]
    keys = {"model_type": "chatglm", **keys}
    if named is not None:
        keys["_name_or_path"] = path if named == "as published" else named
    assert family_of(keys).name == name


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer_config.json", {"name_or_path": "THUDM/chatglm3-6b-base"}),
        ("tokenizer_config.json", {"tokenizer_class": "ChatGLM3Tokenizer"}),
        ("tokenizer_config.json", {"chat_template": "[gMASK]sop<|{{ role }}|>"}),
        ("tokenization_chatglm.py", 'special_tokens = ["<|system|>", "<|user|>", "<|assistant|>"]\nraise SystemExit'),
    ],
)
def test_what_tells_chatglm3_from_chatglm2(file: str, content: Any, tmp_path: Path) -> None:
    keys = {"model_type": "chatglm", **LATER, "seq_length": 32768}
    assert family_of(keys, tmp_path).name == "ChatGLM2-6B"
    (tmp_path / file).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    assert family_of(keys, tmp_path).name == "ChatGLM3-6B"


def test_saved_by_transformers() -> None:
    for prefix, name in (("ChatGLM2", "ChatGLM2-6B"), ("ChatGLM3", "ChatGLM3-6B"), ("CodeGeeX2", "CodeGeeX2-6B")):
        keys = {"model_type": "chatglm", **LATER, "architectures": [f"{prefix}ForConditionalGeneration"]}
        assert family_of(keys).name == name


def test_others_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="'llama'"):
        family_of({"model_type": "llama"})


@pytest.mark.parametrize(
    "keys",
    [
        {"original_rope": False},
        {"rotary_percent": 1.0},
        {"fp32_residual_connection": True},
        {"interleaved_qkv": True},
        {"rope_scaling": {"type": "yarn", "factor": 4}},
        {"attention_dropout": 0.1},
        {"kv_channels": 6},
        {"num_attention_heads": 5},
        {"eos_token_id": []},
        {"eos_token_id": ["</s>"]},
        {"num_layers": 2, "num_hidden_layers": 3},
    ],
)
def test_switches_that_cannot_be_computed_are_refused_by_name(keys: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match=next(iter(keys)) if "heads" not in str(keys) else "multi_query"):
        ChatGLM2NetworkConfig.from_keys({**LATER, **keys})


def test_missing_keys_give_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    config = ChatGLM2NetworkConfig.from_keys({"padded_vocab_size": 65024, "multi_query_attention": True})
    assert (config.add_qkv_bias, config.num_key_value_heads) == (False, 1)
    assert "add_qkv_bias = False (published: True)" in caplog.text
    assert "multi_query_attention" not in caplog.text
