"""Which family a model folder is of, by what published and saved folders really hold; a path name says nothing.

ChatGLM2-6B, ChatGLM3-6B, CodeGeeX2-6B and GLM-4-9B share model_type "chatglm", their tensors and their keys. What tells
ChatGLM3 from ChatGLM2 is the names that a folder gives itself, its chat template, or its remote code (read, never run).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from chatglm.checkpoints import read_json
from chatglm.errors import CheckpointError

LATER_KEYS = ("padded_vocab_size", "multi_query_attention", "kv_channels")
# What tells the vocabularies apart; GLM-4's is never the smaller one.
CHATGLM2_VOCABULARY, GLM4_VOCABULARY = 65024, 151552
# Of ChatGLM3-6B where nothing names it: its context, and `rope_ratio` of the variants for 32k and 128k.
CHATGLM3_LENGTH, CHATGLM3_RATIOS = 8192, (50, 500)
MAX_CODE_BYTES = 1 << 20


class Facts:
    """Keys of config.json, with what the folder beside it tells where there is one."""

    def __init__(self, keys: Mapping[str, Any], folder: Path | None) -> None:
        self.keys = keys
        self._folder = folder

    @property
    def is_chatglm(self) -> bool:
        return self.keys.get("model_type") == "chatglm"

    @property
    def is_later(self) -> bool:
        return self.is_chatglm and any(key in self.keys for key in LATER_KEYS)

    @property
    def is_glm4(self) -> bool:
        vocabulary = self.keys.get("padded_vocab_size")
        named = vocabulary != CHATGLM2_VOCABULARY and self._is_named("glm4", "glm-4", "chatglm4")
        return self.is_later and (vocabulary == GLM4_VOCABULARY or named)

    @property
    def is_codegeex2(self) -> bool:
        return self.is_later and ("rotary_percent" in self.keys or self._is_named("codegeex2"))

    @property
    def is_chatglm3(self) -> bool:
        if not self.is_later or self._is_named("chatglm2"):
            return False
        looks_so = self.keys.get("seq_length") == CHATGLM3_LENGTH or self.keys.get("rope_ratio") in CHATGLM3_RATIOS
        return self._is_named("chatglm3") or self._has_roles() or looks_so

    def _is_named(self, *starts: str) -> bool:
        """Whether a class, or the repository that the folder is of, is named so; other paths say nothing."""
        return any(name.startswith(starts) for name in self._names)

    @cached_property
    def _names(self) -> list[str]:
        settings = self._tokenizer_settings
        classes = [*_texts(self.keys.get("architectures")), *_texts(settings.get("tokenizer_class"))]
        classes += [name for value in _texts(settings.get("auto_map")) for name in [value.rpartition(".")[2]]]
        paths = [*_texts(self.keys.get("_name_or_path")), *_texts(settings.get("name_or_path"))]
        return [name.lower() for name in (*classes, *(re.split(r"[/\\]", path.rstrip("/"))[-1] for path in paths))]

    @cached_property
    def _tokenizer_settings(self) -> dict[str, Any]:
        if self._folder is None:
            return {}
        try:
            return read_json(self._folder / "tokenizer_config.json")
        except (CheckpointError, OSError):
            return {}

    def _has_roles(self) -> bool:
        template = str(self._tokenizer_settings.get("chat_template"))
        return "<|" in template or "<|assistant|>" in self._remote_code()

    def _remote_code(self) -> str:
        try:
            with open((self._folder or Path()) / "tokenization_chatglm.py", "rb") as file:
                return file.read(MAX_CODE_BYTES).decode(errors="replace")
        except OSError:
            return ""


def _texts(value: Any) -> Iterator[str]:
    """All texts in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts(part)
