"""The families. A family is a row in `FAMILIES` and a package with these modules, {P} being its class prefix:

    config.py      {P}NetworkConfig.from_keys(config.json)        sizes and special ids
    tokenizer.py   {P}TextTokenizer.from_folder(folder)           text <-> token ids
    template.py    encode_chat(tokenizer, messages, limit)        messages -> prompt ids
    positions.py   find_layout(input_ids, config)                 positions, and who sees whom
    network.py     {P}Network(config)                             a plain nn.Module, see chatglm.engine.decoder.Network
    weights.py     model_spec(config)                             names, sizes and conventions as data
    model.py       {P}Config, {P}ForConditionalGeneration         the same for transformers' Auto classes
    pretrained_tokenizer.py   {P}Tokenizer                        likewise

Each is imported at its first use; only the last two import transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from chatglm.errors import UnsupportedModelError
from chatglm.model_spec import ModelSpec
from chatglm.models.recognition import Facts


@dataclass(frozen=True)
class Family:
    """One row of the registry: `recognises` tests a folder, `model_type` is its key in transformers."""

    name: str
    recognises: Callable[[Facts], bool]
    package: str
    prefix: str
    model_type: str

    def _part(self, module: str, name: str) -> Any:
        return getattr(import_module(f"{self.package}.{module}"), name)

    def config(self, keys: Mapping[str, Any]) -> Any:
        return self._part("config", f"{self.prefix}NetworkConfig").from_keys(keys)

    def spec(self, config: Any) -> ModelSpec:
        return self._part("weights", "model_spec")(config)

    def empty_network(self, config: Any) -> Any:
        """The network of `config`, packed as it says, with parameters that have types and shapes but no memory."""
        from chatglm.nn.empty import on_meta_device
        from chatglm.quantization.layer_swap import make_room

        with on_meta_device():
            network = self._part("network", f"{self.prefix}Network")(config)
            network.stored_defaults = {}
            make_room(network)
        return network

    def read_tokenizer(self, folder: Path) -> Any:
        return self._part("tokenizer", f"{self.prefix}TextTokenizer").from_folder(folder)

    def encode_chat(self, tokenizer: Any, messages: Any, limit: int) -> Any:
        """The prompt of a conversation, fewer than `limit` ids."""
        return self._part("template", "encode_chat")(tokenizer, messages, limit)

    @property
    def config_class(self) -> Any:
        return self._part("model", f"{self.prefix}Config")

    @property
    def model_class(self) -> Any:
        return self._part("model", f"{self.prefix}ForConditionalGeneration")

    @property
    def tokenizer_class(self) -> Any:
        return self._part("pretrained_tokenizer", f"{self.prefix}Tokenizer")

    def empty_model(self, config: Any) -> Any:
        """`empty_network` as the class that transformers knows."""
        import torch

        with torch.device("meta"):
            return self.model_class(self.config_class(**vars(config)))


# The most specific first.
FAMILIES = [
    Family("GLM-4-9B", lambda facts: facts.is_glm4, "chatglm.models.glm4", "GLM4", "chatglm"),
    Family("CodeGeeX2-6B", lambda facts: facts.is_codegeex2, "chatglm.models.codegeex2", "CodeGeeX2", "chatglm"),
    Family("ChatGLM3-6B", lambda facts: facts.is_chatglm3, "chatglm.models.chatglm3", "ChatGLM3", "chatglm"),
    Family("ChatGLM2-6B", lambda facts: facts.is_later, "chatglm.models.chatglm2", "ChatGLM2", "chatglm"),
    Family("ChatGLM-6B", lambda facts: facts.is_chatglm, "chatglm.models.chatglm", "ChatGLM", "chatglm"),
]


def family_of(keys: Mapping[str, Any], folder: Path | None = None) -> Family:
    """The family of a config.json and the folder that it lies in; raises UnsupportedModelError for an unknown one."""
    facts = Facts(keys, folder)
    for family in FAMILIES:
        if family.recognises(facts):
            return family
    names = ", ".join(family.name for family in FAMILIES)
    raise UnsupportedModelError(
        f"This folder holds a model of type {keys.get('model_type')!r}, not one of {names}.",
        'Give a folder whose config.json says model_type "chatglm".',
    )
