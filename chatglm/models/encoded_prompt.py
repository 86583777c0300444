"""What the chat template of every family gives, and lengths of texts that are too long to be encoded whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# Characters encoded at a time to tell a length. A cut changes the number of tokens a little: less than a tenth in all.
PART = 1000


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as the model takes it.

    Attributes:
        input_ids: of the prompt, special tokens included.
        dropped_rounds: how many of the oldest rounds were left out to fit.
    """

    input_ids: list[int]
    dropped_rounds: int


def least_tokens(tokenizer: Any, text: str, enough: int) -> int:
    """Tokens that `text` has at least; no more of it is encoded than shows that they are more than `enough`.

    Encoding a megabyte takes seconds, and most of what is too long is too long by far.
    """
    count = 0
    for start in range(0, len(text), PART):
        count += len(tokenizer.encode_plain(text[start : start + PART])) * 9 // 10
        if count > enough:
            break
    return count
