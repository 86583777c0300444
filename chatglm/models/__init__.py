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


@dataclass(frozen=True)
class Family:
    """One row of the registry: `recognises` tests a config.json, `model_type` is its key in transformers."""

    name: str
    recognises: Callable[[Mapping[str, Any]], bool]
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


# ChatGLM2 and later share model_type "chatglm".
LATER_FAMILY_KEYS = ("padded_vocab_size", "multi_query_attention", "kv_channels")


def _is_chatglm(keys: Mapping[str, Any]) -> bool:
    return keys.get("model_type") == "chatglm" and not any(key in keys for key in LATER_FAMILY_KEYS)


# The most specific first.
FAMILIES = [Family("ChatGLM-6B", _is_chatglm, "chatglm.models.chatglm", "ChatGLM", "chatglm")]


def family_of(keys: Mapping[str, Any]) -> Family:
    """The family of a config.json; raises UnsupportedModelError, with what it seems to be, if none here reads it."""
    for family in FAMILIES:
        if family.recognises(keys):
            return family
    refuse_later_families(keys)
    raise UnsupportedModelError(
        f"This folder holds a model of type {keys.get('model_type')!r}, not ChatGLM-6B.",
        'Give a folder whose config.json says model_type "chatglm".',
    )


def refuse_later_families(keys: Mapping[str, Any]) -> None:
    """Raise UnsupportedModelError when `keys` of a config.json are those of ChatGLM2 or later."""
    found = [key for key in LATER_FAMILY_KEYS if key in keys]
    if found:
        raise UnsupportedModelError(
            f"This is a ChatGLM2 or ChatGLM3 checkpoint (its config.json has `{found[0]}`), not ChatGLM-6B.",
            "This family is not supported yet; use a chatglm-6b folder.",
        )
