"""A decoder that plays given tokens, and a tokenizer with one character per token: requests without a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from chatglm.engine.decoder import BatchDecoder
from chatglm.engine.request import Request
from chatglm.engine.runner import Decoder, Runner
from chatglm.generation.config import GenerationConfig
from chatglm.model_spec import ModelSpec
from chatglm.models.chatglm.weights import answer_stages

EOS = 0
NAN = -1


def tiny_spec(vocab_size: int, context_limit: int, eos_ids: tuple[int, ...] = (EOS,), **changes: Any) -> ModelSpec:
    """The spec of a network that has nothing but tokens."""
    sizes = dict.fromkeys(("num_layers", "hidden_size", "num_heads", "num_kv_heads", "head_width"), 1)
    names = dict.fromkeys(("layers", "embedding", "final_norm", "head"), "")
    conventions = {"pad_id": 0, "visibility": "prefix", "chat_defaults": {}, "linears": ()}
    values = {**names, **sizes, **conventions, **changes}
    return ModelSpec(vocab_size=vocab_size, context_limit=context_limit, eos_ids=eos_ids, **values)


class CharacterTokenizer:
    """Token n is the character chr(n); `EOS` is nothing."""

    clean_up_tokenization_spaces = False
    leading_spaces = "keep"

    def surface(self, token_id: int) -> str:
        return chr(token_id) if token_id != EOS else ""


class ScriptedDecoder:
    """Gives tokens in order, whatever it is asked; `NAN` gives a broken step. Counts the steps it runs."""

    device = torch.device("cpu")
    prompt_tokens_at_once = 256

    def __init__(self, script: str | list[int], context: int = 1000, on_step: Callable[[int], object] = id) -> None:
        self.script = [ord(c) for c in script] + [EOS] if isinstance(script, str) else script
        self.spec = tiny_spec(0x10000, context, clean_up=answer_stages)
        self.num_steps = 0
        self.on_step = on_step

    def cache_positions(self, num_tokens: int, *, uses_adapter: bool = True) -> int:
        return num_tokens

    def new_cache(self, capacity: int, *, uses_adapter: bool = True) -> Any:
        return object()

    def prompt_layout(self, input_ids: Tensor) -> Any:
        return None

    def fill_caches(self, prompts: Sequence[Tensor], layouts: Sequence[Any], caches: Sequence[Any]) -> None:
        pass

    def decode(self, input_ids: Tensor, layouts: Sequence[Any], caches: Sequence[Any]) -> Tensor:
        self.on_step(self.num_steps)
        token_id = self.script[self.num_steps]
        self.num_steps += 1
        logits = torch.zeros(1, 0x10000)
        if token_id == NAN:
            return logits.fill_(torch.nan)
        logits[0, token_id] = 30.0
        return logits


def generate_ids(network: Any, prompt: Sequence[int], config: GenerationConfig) -> list[int | str]:
    """The tokens of an answer, then its finish reason."""
    decoder: Decoder = network if hasattr(network, "fill_caches") else BatchDecoder(network)
    request, runner = Request(decoder, CharacterTokenizer(), prompt, config), Runner(decoder)
    runner.prefill([request])
    while request.finish_reason is None:
        runner.decode([request])
    if request.error is not None:
        raise request.error
    return [*request.token_ids[len(prompt) :], request.finish_reason]
