"""`model.chat` and `model.stream_chat` with the signatures of ChatGLM3-6B and GLM-4."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from chatglm.errors import InvalidRequestError
from chatglm.generation.deltas import Delta
from chatglm.generation.sampling import LogitsProcessor
from chatglm.messages import Message, to_message
from chatglm.models.chat_methods import ChatMethods
from chatglm.models.tool_calls import Answer, RoleHistory, process_response

ASKING_ROLES = ("user", "observation")


class RoleChat(ChatMethods):
    """Histories are lists of {"role", "content"}, with "metadata" of answers and "tools" of a system message first.

    `read_arguments` reads the arguments in the content of a tool call, and raises ValueError if they are none.
    """

    read_arguments: Callable[[str], Any]

    def stream_chat(
        self,
        tokenizer: Any,
        query: str,
        history: Iterable[Mapping[str, Any]] | None = None,
        role: str = "user",
        past_key_values: Any = None,
        max_length: int = 8192,
        do_sample: bool | None = None,
        top_p: float | None = None,
        temperature: float | None = None,
        logits_processor: Sequence[LogitsProcessor] | None = None,
        return_past_key_values: bool = False,
        **kwargs: Any,
    ) -> Iterator[tuple[Answer, RoleHistory] | tuple[Answer, RoleHistory, None]]:
        """Yield (answer so far, history with it) for new text and at the end; the rest as `chat`.

        The parameters of a tool call are read when it is complete; until then it is its name and the text so far.
        `past_key_values` is not needed: the conversation is that of `history`. `return_past_key_values` adds a None.
        """
        past, messages = _conversation(query, history, role)
        kwargs |= {"max_length": max_length, "do_sample": do_sample, "top_p": top_p, "temperature": temperature}
        deltas = self.stream_messages(tokenizer, messages, processors=logits_processor or (), clean_up=list, **kwargs)
        answers = _answers_so_far(deltas, past, self.read_arguments)
        return ((*answer, None) for answer in answers) if return_past_key_values else answers

    def chat(
        self,
        tokenizer: Any,
        query: str,
        history: Iterable[Mapping[str, Any]] | None = None,
        role: str = "user",
        max_length: int = 8192,
        num_beams: int = 1,
        do_sample: bool | None = None,
        top_p: float | None = None,
        temperature: float | None = None,
        logits_processor: Sequence[LogitsProcessor] | None = None,
        **kwargs: Any,
    ) -> tuple[Answer, RoleHistory]:
        """The answer to `query`, and the history with both appended.

        Args:
            tokenizer: the family's tokenizer.
            query, role: what is said, and by whom: "user", or "observation" for what a tool has returned.
            history: earlier messages, not changed.
            max_length: tokens of prompt and answer together, clamped to the model's context.
            num_beams: more than 1 searches with beams through `generate` (not streamed).
            do_sample, top_p, temperature: None = as the checkpoint's generation_config.json says, else True, 0.8, 0.8;
                temperature 0 = greedy.
            logits_processor: transformers' processors, run before penalties and temperature.
            **kwargs: top_k, repetition_penalty, min_new_tokens, max_new_tokens, seed, stop; and what else
                transformers' `generate` takes, such as stopping_criteria, prefix_allowed_tokens_fn, bad_words_ids.

        Returns a text, or for a call of a tool {"name", "parameters"} if the first message offers tools, else
        {"name", "content"}. A call is parsed, never evaluated.
        Raises InvalidRequestError as `UpstreamChat.chat`, InvalidLogitsError for NaN or infinity.
        """
        past, messages = _conversation(query, history, role)
        kwargs |= {"max_length": max_length, "do_sample": do_sample, "top_p": top_p, "temperature": temperature}
        kwargs |= {"processors": logits_processor or (), "clean_up": list}
        return self.process_response(self.answer_messages(tokenizer, messages, num_beams, **kwargs), past)

    def process_response(self, output: str, history: Sequence[Mapping[str, Any]]) -> tuple[Answer, RoleHistory]:
        """The answer in the raw text of a model, and a copy of `history` with it."""
        return process_response(output, history, self.read_arguments)


def _conversation(
    query: str, history: Iterable[Mapping[str, Any]] | None, role: str
) -> tuple[RoleHistory, list[Message]]:
    """The history with the query, copied, and the same as messages."""
    if role not in ASKING_ROLES:
        raise InvalidRequestError(f"role is {role!r}.", f"It can be {' or '.join(map(repr, ASKING_ROLES))}.")
    if history is not None and (isinstance(history, (str, Mapping)) or not isinstance(history, Iterable)):
        raise InvalidRequestError("history is not a list.", 'Give it as [{"role": "user", "content": "..."}, ...].')
    asked = [*(history or []), {"role": role, "content": query}]
    messages = [to_message(entry) for entry in asked]
    return [dict(entry) for entry in asked], messages


def _answers_so_far(
    deltas: Iterator[Delta], past: RoleHistory, read_arguments: Callable[[str], Any]
) -> Iterator[tuple[Answer, RoleHistory]]:
    output = ""
    for delta in deltas:
        output += delta.text
        is_end = delta.finish_reason not in (None, "error")
        if delta.text or is_end:
            yield process_response(output, past, read_arguments if is_end else None)
