"""The chat template of ChatGLM-6B: a conversation as one prompt.

`{query}` alone or, after earlier rounds, lines `[Round 0]`, `问：{query}`, `答：{answer}`, ..., `问：{query}`, `答：`.
The model was trained without system messages; ours, each ended by a newline, are moved in front, in order. Neighbouring
messages of one speaker are joined by newlines; an answer before any query gets an empty query.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from chatglm.errors import InvalidRequestError, PromptTooLongError
from chatglm.messages import Message
from chatglm.models.encoded_prompt import EncodedPrompt, least_tokens

# No token of the vocabulary stands for more characters: the longest is the run of 80 blanks.
LONGEST_TOKEN = 80
# `[Round 0]`, `问：`, `答：` and their line ends are more tokens than this, whatever is asked and answered.
LEAST_ROUND_TOKENS = 6


@dataclass(frozen=True)
class _Conversation:
    system: str
    rounds: list[tuple[str, str]]
    query: str

    def is_long(self, num_tokens: int) -> bool:
        """Whether encoding it once more, to see which rounds fit, costs less than encoding all of it."""
        num_characters = sum(len(asked) + len(answered) for asked, answered in self.rounds)
        return num_characters + len(self.rounds) * LEAST_ROUND_TOKENS > 4 * num_tokens

    def rounds_beyond(self, num_tokens: int, tokenizer: Any) -> int:
        """How many of the oldest rounds cannot be among the newest so many tokens."""
        left = num_tokens
        for number in reversed(range(len(self.rounds))):
            left -= LEAST_ROUND_TOKENS
            left -= sum(least_tokens(tokenizer, text, left) for text in self.rounds[number] if left >= 0)
            if left < 0:
                return number + 1
        return 0

    def render(self, dropped_rounds: int = 0) -> str:
        rounds = self.rounds[dropped_rounds:]
        if not rounds:
            return self.system + self.query
        earlier = "".join(f"[Round {i}]\n问：{query}\n答：{answer}\n" for i, (query, answer) in enumerate(rounds))
        return f"{self.system}{earlier}[Round {len(rounds)}]\n问：{self.query}\n答："


def render(messages: Sequence[Message]) -> str:
    """Prompt text of a conversation; raises InvalidRequestError unless it ends with a message of the user."""
    return _arrange(messages).render()


def encode_chat(tokenizer: Any, messages: Sequence[Message], limit: int) -> EncodedPrompt:
    """Prompt ids of a conversation, oldest message first, fewer than `limit`; the oldest rounds are dropped to fit.

    Text such as `[gMASK]<sop>` stays text; where none is spelled the ids equal `tokenizer.encode(render(messages))`.
    Remaining rounds are renumbered from 0; the system message stays. Raises InvalidRequestError unless the user's
    message is last, PromptTooLongError if the last query (with the system message) does not fit by itself.
    """
    conversation = _arrange(messages)

    def encode(dropped_rounds: int) -> list[int]:
        ids = tokenizer.encode_plain(conversation.render(dropped_rounds))
        return tokenizer.build_inputs_with_special_tokens(ids)

    alone = conversation.system + conversation.query
    num_least = least_tokens(tokenizer, alone, limit) if len(alone) <= limit * LONGEST_TOKEN else limit
    if num_least >= limit:
        raise PromptTooLongError(
            f"The message is {len(alone)} characters long; fewer than {limit} tokens fit.",
            "Shorten it, or raise max_length.",
        )
    dropped = conversation.rounds_beyond(limit - num_least, tokenizer) if conversation.is_long(limit) else 0
    input_ids = encode(dropped)
    if len(input_ids) >= limit:
        # Every dropped round shortens the prompt, so the fewest that help are found by halving.
        last = len(conversation.rounds)
        dropped = bisect.bisect_left(range(last), True, lo=dropped, key=lambda number: len(encode(number)) < limit)
        input_ids = encode(dropped)
    if len(input_ids) >= limit:
        raise PromptTooLongError(
            f"The message is {len(input_ids)} tokens long; fewer than {limit} fit.", "Shorten it, or raise max_length."
        )
    return EncodedPrompt(input_ids, dropped)


def _arrange(messages: Sequence[Message]) -> _Conversation:
    """Sort messages into system lines, complete rounds and the query that waits for an answer."""
    system = "".join(f"{message.content}\n" for message in messages if message.role == "system" and message.content)
    by_speaker = itertools.groupby((one for one in messages if one.role != "system"), key=lambda one: one.role)
    spoken = [Message(role, "\n".join(one.content for one in group)) for role, group in by_speaker]
    if not spoken or spoken[-1].role != "user":
        raise InvalidRequestError("The conversation does not end with a message of the user.")
    *earlier, query = spoken
    if earlier and earlier[0].role == "assistant":
        earlier.insert(0, Message("user", ""))
    pairs = zip(earlier[::2], earlier[1::2], strict=True)
    return _Conversation(system, [(asked.content, answered.content) for asked, answered in pairs], query.content)
