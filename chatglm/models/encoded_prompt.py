"""What the chat template of every family gives."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as the model takes it.

    Attributes:
        input_ids: of the prompt, special tokens included.
        dropped_rounds: how many of the oldest rounds were left out to fit.
    """

    input_ids: list[int]
    dropped_rounds: int
