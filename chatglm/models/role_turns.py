"""Conversations as the models with role tokens know them: a turn for each message, then `<|assistant|>`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

from chatglm.errors import InvalidRequestError
from chatglm.messages import Message
from chatglm.models.encoded_prompt import EncodedPrompt, TemplateSizes, encode_to_fit


def encode_turns(
    tokenizer: Any,
    messages: Sequence[Message],
    encode_turn: Callable[[Any, Message], list[int]],
    limit: int,
    sizes: TemplateSizes,
) -> EncodedPrompt:
    """Prompt ids of a conversation, oldest message first, fewer than `limit`: see `encode_to_fit`.

    A round is what a user says and all that follows; system messages stay where they are when rounds are dropped.
    Raises InvalidRequestError unless the last message is the user's, or what a tool returned.
    """
    spoken = [message.role for message in messages if message.role != "system"]
    if not spoken or spoken[-1] not in ("user", "observation"):
        raise InvalidRequestError("The conversation does not end with a message of the user.")
    numbers = round_numbers(messages)
    last = max(number for number in numbers if number is not None)
    turns: dict[int, list[int]] = {}

    def encode(dropped_rounds: int) -> list[int]:
        kept = [at for at, number in enumerate(numbers) if number is None or number >= dropped_rounds]
        turns.update({at: encode_turn(tokenizer, messages[at]) for at in kept if at not in turns})
        ids = list(chain.from_iterable(turns[at] for at in kept))
        return [*tokenizer.build_inputs_with_special_tokens(ids), tokenizer.special_id("<|assistant|>")]

    def texts(wanted: int | None) -> list[str]:
        return [one.content for one, number in zip(messages, numbers, strict=True) if number == wanted]

    stays = "".join([*texts(None), *texts(last)])
    return encode_to_fit(tokenizer, encode, stays, _by_round(messages, numbers, last), limit, sizes)


def round_numbers(messages: Sequence[Message]) -> list[int | None]:
    """The number of the round of each message, from 0; None for system messages, which belong to none."""
    numbers: list[int | None] = []
    current, before = 0, None
    for message in messages:
        if message.role == "system":
            numbers.append(None)
            continue
        if message.role == "user" and before not in (None, "user"):
            current += 1
        numbers.append(current)
        before = message.role
    return numbers


def _by_round(messages: Sequence[Message], numbers: Sequence[int | None], last: int) -> list[list[str]]:
    """The texts of each round before the last."""
    rounds: list[list[str]] = [[] for _ in range(last)]
    for message, number in zip(messages, numbers, strict=True):
        if number is not None and number < last:
            rounds[number].append(message.content)
    return rounds
