"""`model.chat` and `model.stream_chat`, with upstream's signatures, on top of the decode loop.

Knows: queries and (query, answer) histories. Does not know a family's prompt: the network's `encode_chat` makes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

from chatglm.errors import InvalidRequestError
from chatglm.generation.config import CHAT_DEFAULTS, GenerationConfig
from chatglm.generation.decode import DecodableModel, never, stream_text
from chatglm.generation.deltas import Delta
from chatglm.generation.next_token import LogitsProcessor
from chatglm.generation.text import clean_up
from chatglm.messages import History, check_history, to_messages


def chat_defaults(model: Any) -> dict[str, Any]:
    """Upstream's chat defaults, overridden by what the checkpoint's generation_config.json says of them."""
    stored = getattr(model, "generation_config", None)
    own = {name: getattr(stored, name, None) for name in CHAT_DEFAULTS if name != "max_length"}
    own |= {name: value for name, value in getattr(model, "stored_defaults", {}).items() if name != "max_length"}
    return {**CHAT_DEFAULTS, **{name: value for name, value in own.items() if value is not None}}


@dataclass(frozen=True)
class ChatPrompt:
    """A conversation, ready for the network.

    Attributes:
        input_ids: of the prompt, specials included.
        config: how it is answered.
        dropped_rounds: oldest rounds left out because they did not fit.
    """

    input_ids: list[int]
    config: GenerationConfig
    dropped_rounds: int


class ChatMixin:
    """Chat methods for a network that the decode loop can run (`DecodableModel`) and that has `encode_chat`."""

    config: Any
    device: Any
    encode_chat: Callable[..., Any]
    generate: Callable[..., Any]

    def chat_prompt(
        self,
        tokenizer: Any,
        query: str,
        history: Iterable[Sequence[str]] | None = None,
        system: str | None = None,
        **parameters: Any,
    ) -> ChatPrompt:
        """A query with its history as ids, and how it is to be answered.

        Oldest rounds are dropped until the prompt leaves room for an answer. Parameters: those of `GenerationConfig`;
        None = the default.

        Raises:
            InvalidRequestError: a bad parameter, query or history, or a query too long by itself.
        """
        if not isinstance(query, str):
            raise InvalidRequestError(f"The query must be a string, not {type(query).__name__}.")
        config = GenerationConfig.of(chat_defaults(self), **parameters)
        messages = to_messages(query, check_history(history), system)
        limit = min(config.max_length, self.config.max_sequence_length)
        prompt = self.encode_chat(tokenizer, messages, limit)
        return ChatPrompt(prompt.input_ids, config, prompt.dropped_rounds)

    def stream_deltas(
        self,
        tokenizer: Any,
        query: str,
        history: Iterable[Sequence[str]] | None = None,
        system: str | None = None,
        is_cancelled: Callable[[], bool] = never,
        processors: Sequence[LogitsProcessor] = (),
        **parameters: Any,
    ) -> Iterator[Delta]:
        """The answer to `query` as deltas, which say how many rounds were dropped. Arguments as `chat_prompt`.

        Raises:
            InvalidRequestError: as `chat_prompt`, at once.
            InvalidLogitsError: the network produced NaN or infinity.
        """
        prompt = self.chat_prompt(tokenizer, query, history, system, **parameters)
        return stream_text(
            cast(DecodableModel, self),
            tokenizer,
            prompt.input_ids,
            prompt.config,
            is_cancelled,
            processors,
            prompt.dropped_rounds,
        )

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
        """Yield (answer so far, history with it) whenever there is new text, and at the end.

        Args and errors as `chat`. The given history is never changed.
        """
        past = check_history(history)
        deltas = self.stream_deltas(
            tokenizer,
            query,
            past,
            processors=logits_processor or (),
            max_length=max_length,
            do_sample=do_sample,
            top_p=top_p,
            temperature=temperature,
            **kwargs,
        )
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
        **kwargs: Any,
    ) -> tuple[str, History]:
        """The answer to `query`, and the history with it appended.

        Args:
            tokenizer: the family's tokenizer.
            query: what the user says.
            history: earlier rounds as (query, answer) pairs; not changed.
            max_length: tokens of prompt and answer together, clamped to the model's context.
            num_beams: more than 1 searches with beams through `generate` (not streamed).
            do_sample: None = as the checkpoint's generation_config.json says, else True.
            top_p: None = likewise, else 0.7.
            temperature: None = likewise, else 0.95; 0 = greedy.
            logits_processor: transformers' processors, run before penalties and temperature.
            **kwargs: top_k, repetition_penalty, min_new_tokens, max_new_tokens, seed, stop, system.

        Raises:
            InvalidRequestError: a bad parameter, query or history, or a query too long by itself.
            InvalidLogitsError: the network produced NaN or infinity.
        """
        parameters: dict[str, Any] = {
            "max_length": max_length,
            "do_sample": do_sample,
            "top_p": top_p,
            "temperature": temperature,
        }
        if num_beams > 1:
            return self._beam_chat(tokenizer, query, history, num_beams, logits_processor, **parameters, **kwargs)
        past = check_history(history)
        deltas = self.stream_deltas(tokenizer, query, past, processors=logits_processor or (), **parameters, **kwargs)
        response = "".join(delta.text for delta in deltas)
        return response, [*past, (query, response)]

    def _beam_chat(
        self,
        tokenizer: Any,
        query: str,
        history: Iterable[Sequence[str]] | None,
        num_beams: int,
        processors: Sequence[LogitsProcessor] | None,
        system: str | None = None,
        **parameters: Any,
    ) -> tuple[str, History]:
        import torch
        from transformers import LogitsProcessorList

        past = check_history(history)
        config = GenerationConfig.of(chat_defaults(self), **parameters)
        limit = min(config.max_length, self.config.max_sequence_length)
        ids = self.encode_chat(tokenizer, to_messages(query, past, system), limit).input_ids
        sampling = (
            {}
            if config.is_greedy
            else {
                "temperature": config.temperature,
                "top_p": config.top_p,
                "top_k": config.top_k,
            }
        )
        output = self.generate(
            torch.tensor([ids], device=self.device),
            max_length=limit,
            num_beams=num_beams,
            do_sample=not config.is_greedy,
            repetition_penalty=config.repetition_penalty,
            logits_processor=LogitsProcessorList(processors or ()),
            **sampling,
        )
        new_ids = [i for i in output[0, len(ids) :].tolist() if i != self.config.eos_token_id]
        response = clean_up(tokenizer.decode(new_ids))
        return response, [*past, (query, response)]


def _answers_so_far(deltas: Iterator[Delta], query: str, past: History) -> Iterator[tuple[str, History]]:
    response = ""
    for delta in deltas:
        response += delta.text
        if delta.text or delta.finish_reason is not None:
            yield response, [*past, (query, response)]
