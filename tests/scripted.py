"""A network that plays given ids, and a tokenizer with one character per id: the decode loop without a model."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

EOS = 0
NAN = -1


class CharacterTokenizer:
    """Id n is the character chr(n); `EOS` is nothing."""

    clean_up_tokenization_spaces = False
    leading_spaces = "keep"

    def surface(self, token_id: int) -> str:
        return chr(token_id) if token_id != EOS else ""


class ScriptedModel:
    """Gives token ids in order, whatever it is asked; `NAN` gives a broken step. Counts the steps it runs."""

    device = torch.device("cpu")

    def __init__(self, script: str | list[int], context: int = 1000, on_step: Callable[[int], object] = id) -> None:
        self.script = [ord(c) for c in script] + [EOS] if isinstance(script, str) else script
        self.config = SimpleNamespace(max_sequence_length=context, eos_token_id=EOS)
        self.num_steps = 0
        self.on_step = on_step

    def new_cache(self, capacity: int) -> Any:
        return object()

    def prompt_layout(self, input_ids: Tensor) -> Any:
        return None

    def prefill(self, input_ids: Tensor, layout: Any, cache: Any) -> Tensor:
        return self._scores()

    def decode(self, input_ids: Tensor, layout: Any, cache: Any) -> Tensor:
        return self._scores()

    def _scores(self) -> Tensor:
        self.on_step(self.num_steps)
        token_id = self.script[self.num_steps]
        self.num_steps += 1
        scores = torch.zeros(1, 0x10000)
        if token_id == NAN:
            return scores.fill_(torch.nan)
        scores[0, token_id] = 30.0
        return scores
