"""`model.chat` and `model.stream_chat` with upstream's signatures, for the transformers class of any family."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from chatglm.engine.decoder import BatchDecoder
from chatglm.engine.request import never
from chatglm.engine.solo import stream_alone
from chatglm.generation.config import GenerationConfig, chat_defaults
from chatglm.generation.deltas import Delta, fold
from chatglm.generation.sampling import LogitsProcessor
from chatglm.generation.text import run_stages
from chatglm.messages import History, check_history, to_messages
from chatglm.models.library_generation import (
    OF_BEAMS,
    library_arguments,
    split_parameters,
    stream_by_library,
    stream_ids,
)


class UpstreamChat:
    """Chat methods; `encode_chat` is the family's template."""

    encode_chat: Callable[..., Any]

    def stream_deltas(
        self,
        tokenizer: Any,
        query: str,
        history: Iterable[Sequence[str]] | None = None,
        *,
        system: str | None = None,
        processors: Sequence[LogitsProcessor] = (),
        is_cancelled: Callable[[], bool] = never,
        **parameters: Any,
    ) -> Iterator[Delta]:
        """The answer as deltas; oldest rounds are dropped to make room. Errors as `chat`; a bad argument at once."""
        own, others = split_parameters(parameters)
        ids, config, dropped_rounds = self._prompt(tokenizer, query, history, system, own)
        if others.keys() - OF_BEAMS:
            return stream_by_library(
                self,
                tokenizer,
                ids,
                config,
                dropped_rounds=dropped_rounds,
                processors=processors,
                is_cancelled=is_cancelled,
                others=others,
            )
        return stream_alone(
            BatchDecoder(self),  # type: ignore[arg-type]
            tokenizer,
            ids,
            config,
            dropped_rounds=dropped_rounds,
            processors=processors,
            is_cancelled=is_cancelled,
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
        """Yield (answer so far, history with it) for new text and at the end; the rest as `chat`."""
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
            query, history: what the user says; earlier rounds as (query, answer) pairs, not changed.
            max_length: tokens of prompt and answer together, clamped to the model's context.
            num_beams: more than 1 searches with beams through `generate` (not streamed).
            do_sample: None = as the checkpoint's generation_config.json says, else True.
            top_p, temperature: None = likewise, else 0.7 and 0.95; temperature 0 = greedy.
            logits_processor: transformers' processors, run before penalties and temperature.
            **kwargs: top_k, repetition_penalty, min_new_tokens, max_new_tokens, seed, stop, system; and what else
                transformers' `generate` takes, such as stopping_criteria, prefix_allowed_tokens_fn, bad_words_ids.

        Raises:
            InvalidRequestError: a bad parameter, query or history, or a query too long by itself.
            InvalidLogitsError: the network produced NaN or infinity.
        """
        past = check_history(history)
        kwargs |= {"max_length": max_length, "do_sample": do_sample, "top_p": top_p, "temperature": temperature}
        processors = logits_processor or ()
        if num_beams > 1:
            response = self._search_beams(tokenizer, query, past, num_beams, processors, **kwargs)
        else:
            response = fold(self.stream_deltas(tokenizer, query, past, processors=processors, **kwargs)).text
        return response, [*past, (query, response)]

    def stream_generate(
        self,
        input_ids: Any = None,
        generation_config: Any = None,
        logits_processor: Sequence[LogitsProcessor] | None = None,
        stopping_criteria: Any = None,
        prefix_allowed_tokens_fn: Callable[[int, Any], list[int]] | None = None,
        **kwargs: Any,
    ) -> Iterator[Any]:
        """The ids so far, int64 [B, n] with the prompt, after each token; arguments as of transformers' `generate`.

        Each row ends before its end token, beams are not searched. Raises InvalidRequestError at once for an argument
        that cannot be used, InvalidLogitsError while iterating.
        """
        return stream_ids(
            self,
            input_ids,
            generation_config=generation_config,
            logits_processor=logits_processor,
            stopping_criteria=stopping_criteria,
            prefix_allowed_tokens_fn=prefix_allowed_tokens_fn,
            **kwargs,
        )

    def _prompt(
        self,
        tokenizer: Any,
        query: str,
        history: Iterable[Sequence[str]] | None,
        system: str | None,
        parameters: dict[str, Any],
    ) -> tuple[list[int], GenerationConfig, int]:
        """Prompt ids, how they are answered, and the number of rounds dropped to fit."""
        config = GenerationConfig.of(chat_defaults(self), **parameters)
        limit = min(config.max_length, self.spec.context_limit)  # type: ignore[attr-defined]
        prompt = self.encode_chat(tokenizer, to_messages(query, check_history(history), system), limit)
        return prompt.input_ids, config, prompt.dropped_rounds

    def _search_beams(
        self,
        tokenizer: Any,
        query: str,
        past: History,
        num_beams: int,
        processors: Sequence[LogitsProcessor],
        system: str | None = None,
        **parameters: Any,
    ) -> str:
        import torch

        model: Any = self
        own, others = split_parameters(parameters)
        ids, config, _ = self._prompt(tokenizer, query, past, system, own)
        arguments = library_arguments(config, len(ids), model.spec.context_limit)
        output = model.generate(
            torch.tensor([ids], device=model.device),
            logits_processor=list(processors),
            **{**arguments, **others, "num_beams": num_beams, "return_dict_in_generate": False},
        )
        new_ids = [i for i in output[0, len(ids) :].tolist() if i not in model.spec.eos_ids]
        return run_stages(model.spec.clean_up(), tokenizer.decode(new_ids))


def _answers_so_far(deltas: Iterator[Delta], query: str, past: History) -> Iterator[tuple[str, History]]:
    response = ""
    for delta in deltas:
        response += delta.text
        if delta.text or delta.finish_reason not in (None, "error"):
            yield response, [*past, (query, response)]
