"""The families, one row each: which classes belong together and how a folder is recognised.

Knows: names of modules and the keys of a config.json. Imports a family's heavy modules only when one is asked for.
To add a family: one folder beside `chatglm/` and one row in `FAMILIES`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import Any

from chatglm.errors import UnsupportedModelError
from chatglm.model_spec import ModelSpec


@dataclass(frozen=True)
class Family:
    """Where the four parts of a family live; each attribute imports its part when first used."""

    name: str
    package: str
    class_prefix: str

    def _part(self, module: str, suffix: str) -> Any:
        return getattr(import_module(f"{self.package}.{module}"), f"{self.class_prefix}{suffix}")

    @cached_property
    def config_class(self) -> Any:
        return self._part("config", "Config")

    @cached_property
    def model_class(self) -> Any:
        return self._part("model", "ForConditionalGeneration")

    @cached_property
    def tokenizer_class(self) -> Any:
        return self._part("tokenizer", "Tokenizer")

    def config(self, keys: dict[str, Any]) -> Any:
        """The configuration that the keys of a config.json describe."""
        return self.config_class.from_dict(keys)

    def read_tokenizer(self, folder: Any) -> Any:
        """The tokenizer of a folder."""
        from chatglm.checkpoints import check_usable

        for name in self.tokenizer_class.vocab_files_names.values():
            check_usable(folder / name)
        return self.tokenizer_class.from_pretrained(str(folder))

    def spec(self, config: Any) -> ModelSpec:
        """Names, sizes and conventions of a network of this configuration."""
        return import_module(f"{self.package}.weights").model_spec(config)

    def empty_network(self, config: Any) -> Any:
        """The network of `config` with parameters that have types and shapes but no memory."""
        import torch

        with torch.device("meta"):
            return self.model_class(config)


FAMILIES = {"chatglm": Family("ChatGLM-6B", "chatglm.models.chatglm", "ChatGLM")}


def family_of(config: dict[str, Any]) -> Family:
    """The family whose folder has this config.json.

    Raises:
        UnsupportedModelError: no family here reads it; the sentence says what it seems to be.
    """
    from chatglm.models.chatglm.config import refuse_later_families

    refuse_later_families(config)
    model_type = config.get("model_type")
    if model_type not in FAMILIES:
        raise UnsupportedModelError(
            f"This folder holds a model of type {model_type!r}, not ChatGLM-6B.",
            'Give a folder whose config.json says model_type "chatglm".',
        )
    return FAMILIES[model_type]
