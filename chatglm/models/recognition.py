"""Which family a model folder is of, by what published and saved folders really hold; a path name says nothing.

ChatGLM2-6B, ChatGLM3-6B, CodeGeeX2-6B and GLM-4-9B share model_type "chatglm", their tensors and their keys. What tells
ChatGLM3 from ChatGLM2 is the names that a folder gives itself, its chat template, or its remote code (read, never run).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chatglm.checkpoints import read_json
from chatglm.errors import CheckpointError

NAME_KEYS = ("architectures", "_name_or_path", "name_or_path", "tokenizer_class")
LATER_KEYS = ("padded_vocab_size", "multi_query_attention", "kv_channels")
GLM4_VOCABULARY = 151552
CHATGLM3_LENGTH = 8192
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
        has_its_vocabulary = self.keys.get("padded_vocab_size") == GLM4_VOCABULARY
        return self.is_later and (has_its_vocabulary or self._says("glm4", "glm-4"))

    @property
    def is_codegeex2(self) -> bool:
        return self.is_later and ("rotary_percent" in self.keys or self._says("codegeex2"))

    @property
    def is_chatglm3(self) -> bool:
        if not self.is_later or self._says("chatglm2"):
            return False
        return self._says("chatglm3") or self._has_roles() or self.keys.get("seq_length") == CHATGLM3_LENGTH

    def _says(self, *names: str) -> bool:
        said = f"{[self.keys.get(key) for key in NAME_KEYS]} {self._tokenizer()}".lower()
        return any(name in said for name in names)

    def _tokenizer(self) -> list[Any]:
        settings = self._tokenizer_settings()
        return [settings.get(key) for key in (*NAME_KEYS, "auto_map")]

    def _tokenizer_settings(self) -> dict[str, Any]:
        if self._folder is None:
            return {}
        try:
            return read_json(self._folder / "tokenizer_config.json")
        except (CheckpointError, OSError):
            return {}

    def _has_roles(self) -> bool:
        template = str(self._tokenizer_settings().get("chat_template"))
        return "<|" in template or "<|assistant|>" in self._remote_code()

    def _remote_code(self) -> str:
        try:
            with open((self._folder or Path()) / "tokenization_chatglm.py", "rb") as file:
                return file.read(MAX_CODE_BYTES).decode(errors="replace")
        except OSError:
            return ""
