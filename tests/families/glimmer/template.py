"""The chat template: `[gMASK] sop`, a role token and the text of each message, then `<|assistant|>`."""

from __future__ import annotations

from collections.abc import Sequence

from chatglm.errors import InvalidRequestError, PromptTooLongError
from chatglm.messages import Message
from chatglm.models.encoded_prompt import EncodedPrompt
from tests.families.glimmer.tokenizer import GlimmerTextTokenizer


def encode_chat(tokenizer: GlimmerTextTokenizer, messages: Sequence[Message], limit: int) -> EncodedPrompt:
    """The prompt of a conversation, fewer than `limit` ids; oldest rounds are dropped to fit.

    Raises:
        InvalidRequestError: the conversation does not end with a message of the user.
        PromptTooLongError: the last query does not fit by itself.
    """
    if not messages or messages[-1].role != "user":
        raise InvalidRequestError("The conversation does not end with a message of the user.")
    system = [message for message in messages if message.role == "system"]
    spoken = [message for message in messages if message.role != "system"]
    starts = [number for number, message in enumerate(spoken) if message.role == "user"]
    for dropped, start in enumerate(starts):
        ids = _encode(tokenizer, [*system, *spoken[start:]])
        if len(ids) < limit:
            return EncodedPrompt(ids, dropped)
    raise PromptTooLongError(f"The message is {len(ids)} tokens long; fewer than {limit} fit.", "Shorten it.")


def _encode(tokenizer: GlimmerTextTokenizer, messages: Sequence[Message]) -> list[int]:
    ids = tokenizer.build_inputs_with_special_tokens([])
    for message in messages:
        ids += [tokenizer.special_id(f"<|{message.role}|>"), *tokenizer.encode_plain(f"\n{message.content}")]
    return [*ids, tokenizer.special_id("<|assistant|>")]
