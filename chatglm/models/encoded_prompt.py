"""What the chat template of every family gives, and fitting a conversation into a number of tokens."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from chatglm.errors import PromptTooLongError

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


@dataclass(frozen=True)
class TemplateSizes:
    """Bounds that tell without encoding a text that it cannot fit.

    Attributes:
        longest_token: no token of the vocabulary stands for more characters.
        least_round: a round is at least so many tokens, whatever is asked and answered.
    """

    longest_token: int
    least_round: int


def encode_to_fit(
    tokenizer: Any,
    encode: Callable[[int], list[int]],
    stays: str,
    rounds: Sequence[Sequence[str]],
    limit: int,
    sizes: TemplateSizes,
) -> EncodedPrompt:
    """The prompt with the fewest of the oldest rounds dropped that is shorter than `limit`.

    `encode(n)`: the ids without the n oldest rounds. `stays`: the text that is never dropped. `rounds`: the texts of
    each round that may be. Raises PromptTooLongError if what stays does not fit by itself.
    """
    num_least = least_tokens(tokenizer, stays, limit) if len(stays) <= limit * sizes.longest_token else limit
    if num_least >= limit:
        raise PromptTooLongError(
            f"The message is {len(stays)} characters long; fewer than {limit} tokens fit.",
            "Shorten it, or raise max_length.",
        )
    num_characters = sum(len(text) for texts in rounds for text in texts)
    # Encoding once more, to see which rounds fit, costs less than encoding all of a long conversation.
    is_long = num_characters + len(rounds) * sizes.least_round > 4 * limit
    dropped = _rounds_beyond(tokenizer, rounds, limit - num_least, sizes) if is_long else 0
    input_ids = encode(dropped)
    if len(input_ids) >= limit:
        # Every dropped round shortens the prompt, so the fewest that help are found by halving.
        last = len(rounds)
        dropped = bisect.bisect_left(range(last), True, lo=dropped, key=lambda number: len(encode(number)) < limit)
        input_ids = encode(dropped)
    if len(input_ids) >= limit:
        raise PromptTooLongError(
            f"The message is {len(input_ids)} tokens long; fewer than {limit} fit.", "Shorten it, or raise max_length."
        )
    return EncodedPrompt(input_ids, dropped)


def _rounds_beyond(tokenizer: Any, rounds: Sequence[Sequence[str]], num_tokens: int, sizes: TemplateSizes) -> int:
    """How many of the oldest rounds cannot be among the newest so many tokens."""
    left = num_tokens
    for number in reversed(range(len(rounds))):
        left -= sizes.least_round
        left -= sum(least_tokens(tokenizer, text, left) for text in rounds[number] if left >= 0)
        if left < 0:
            return number + 1
    return 0


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
