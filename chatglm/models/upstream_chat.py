"""`model.chat` and `model.stream_chat` with the signatures of ChatGLM-6B, and of ChatGLM2-6B and CodeGeeX2-6B."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from chatglm.generation.deltas import Delta
from chatglm.generation.sampling import LogitsProcessor
from chatglm.messages import History, check_history, to_messages
from chatglm.models.chat_methods import ChatMethods


class UpstreamChat(ChatMethods):
    """As ChatGLM-6B."""

    def stream_chat(
        self,
        tokenizer: Any,
        query: str,
        history: Iterable[Sequence[str]] | None = None,
        max_length: int = 2048,
        do_sample: bool | None = None,
        top_p: float | None = None,
        temperature: float | None = None,
        logits_processor: Sequence[LogitsProcessor] | None = None,
        **kwargs: Any,
    ) -> Iterator[tuple[str, History]]:
        """Yield (answer so far, history with it) for new text and at the end; the rest as `chat`."""
        past = check_history(history)
        kwargs |= {"max_length": max_length, "do_sample": do_sample, "top_p": top_p, "temperature": temperature}
        deltas = self.stream_deltas(tokenizer, query, past, processors=logits_processor or (), **kwargs)
        return _answers_so_far(deltas, query, past)

    def chat(
        self,
        tokenizer: Any,
        query: str,
        history: Iterable[Sequence[str]] | None = None,
        max_length: int = 2048,
        num_beams: int = 1,
        do_sample: bool | None = None,
        top_p: float | None = None,
        temperature: float | None = None,
        logits_processor: Sequence[LogitsProcessor] | None = None,
        system: str | None = None,
        **kwargs: Any,
    ) -> tuple[str, History]:
        """The answer to `query`, and the history with it appended.

        Args:
            tokenizer: the family's tokenizer.
            query, history: what the user says; earlier rounds as (query, answer) pairs, not changed.
            max_length: tokens of prompt and answer together, clamped to the model's context.
            num_beams: more than 1 searches with beams through `generate` (not streamed).
            do_sample: None = as the checkpoint's generation_config.json says, else True.
            top_p, temperature: None = likewise, else the family's (ChatGLM-6B 0.7 and 0.95, ChatGLM2-6B 0.8 and 0.8);
                temperature 0 = greedy.
            logits_processor: transformers' processors, run before penalties and temperature.
            system: instruction in front of the conversation.
            **kwargs: top_k, repetition_penalty, min_new_tokens, max_new_tokens, seed, stop; and what else
                transformers' `generate` takes, such as stopping_criteria, prefix_allowed_tokens_fn, bad_words_ids.

        Raises:
            InvalidRequestError: a bad parameter, query or history, or a query too long by itself.
            InvalidLogitsError: the network produced NaN or infinity.
        """
        past = check_history(history)
        kwargs |= {"max_length": max_length, "do_sample": do_sample, "top_p": top_p, "temperature": temperature}
        messages = to_messages(query, past, system)
        response = self.answer_messages(tokenizer, messages, num_beams, processors=logits_processor or (), **kwargs)
        return response, [*past, (query, response)]


class RoundsChat(ChatMethods):
    """As ChatGLM2-6B and CodeGeeX2-6B."""

    def stream_chat(
        self,
        tokenizer: Any,
        query: str,
        history: Iterable[Sequence[str]] | None = None,
        past_key_values: Any = None,
        max_length: int = 8192,
        do_sample: bool | None = None,
        top_p: float | None = None,
        temperature: float | None = None,
        logits_processor: Sequence[LogitsProcessor] | None = None,
        return_past_key_values: bool = False,
        **kwargs: Any,
    ) -> Iterator[tuple[str, History] | tuple[str, History, None]]:
        """Yield (answer so far, history with it) for new text and at the end; the rest as `UpstreamChat.chat`.

        `past_key_values` is not needed: the conversation is that of `history`. `return_past_key_values` adds a None.
        """
        past = check_history(history)
        kwargs |= {"max_length": max_length, "do_sample": do_sample, "top_p": top_p, "temperature": temperature}
        deltas = self.stream_deltas(tokenizer, query, past, processors=logits_processor or (), **kwargs)
        answers = _answers_so_far(deltas, query, past)
        return ((*answer, None) for answer in answers) if return_past_key_values else answers

    def chat(
        self,
        tokenizer: Any,
        query: str,
        history: Iterable[Sequence[str]] | None = None,
        max_length: int = 8192,
        num_beams: int = 1,
        do_sample: bool | None = None,
        top_p: float | None = None,
        temperature: float | None = None,
        logits_processor: Sequence[LogitsProcessor] | None = None,
        system: str | None = None,
        **kwargs: Any,
    ) -> tuple[str, History]:
        """As `UpstreamChat.chat`; top_p and temperature are 0.8 where neither caller nor checkpoint says."""
        past = check_history(history)
        kwargs |= {"max_length": max_length, "do_sample": do_sample, "top_p": top_p, "temperature": temperature}
        messages = to_messages(query, past, system)
        response = self.answer_messages(tokenizer, messages, num_beams, processors=logits_processor or (), **kwargs)
        return response, [*past, (query, response)]


def _answers_so_far(deltas: Iterator[Delta], query: str, past: History) -> Iterator[tuple[str, History]]:
    response = ""
    for delta in deltas:
        response += delta.text
        if delta.text or delta.finish_reason not in (None, "error"):
            yield response, [*past, (query, response)]
