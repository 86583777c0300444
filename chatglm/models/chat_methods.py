"""What `model.chat` of every family is made of: a conversation answered in the caller's thread."""

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
from chatglm.messages import Message, check_history, to_messages
from chatglm.model_spec import TextStage
from chatglm.models.library_generation import (
    OF_BEAMS,
    library_arguments,
    split_parameters,
    stream_by_library,
    stream_ids,
)

Stages = Callable[[], list[TextStage]]


class ChatMethods:
    """Base of the classes with upstream's signatures; `encode_chat` is the family's template."""

    encode_chat: Callable[..., Any]

    def stream_deltas(
        self,
        tokenizer: Any,
        query: str,
        history: Iterable[Sequence[str]] | None = None,
        *,
        system: str | None = None,
        **options: Any,
    ) -> Iterator[Delta]:
        """The answer to `query` after (query, answer) pairs; options and errors as `stream_messages`."""
        return self.stream_messages(tokenizer, to_messages(query, check_history(history), system), **options)

    def stream_messages(
        self,
        tokenizer: Any,
        messages: Sequence[Message],
        *,
        processors: Sequence[LogitsProcessor] = (),
        is_cancelled: Callable[[], bool] = never,
        clean_up: Stages | None = None,
        **parameters: Any,
    ) -> Iterator[Delta]:
        """The next message as deltas; oldest rounds are dropped to make room. A bad argument is raised at once.

        `clean_up`: stages from decoded text to answer; None = the family's. `parameters`: those of `GenerationConfig`
        and of transformers' `generate`. Raises InvalidRequestError; InvalidLogitsError while iterating.
        """
        own, others = split_parameters(parameters)
        ids, config, dropped_rounds = self._prompt(tokenizer, messages, own)
        if others.keys() - OF_BEAMS:
            return stream_by_library(
                self,
                tokenizer,
                ids,
                config,
                dropped_rounds=dropped_rounds,
                processors=processors,
                is_cancelled=is_cancelled,
                clean_up=clean_up,
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
            clean_up=clean_up,
        )

    def answer_messages(self, tokenizer: Any, messages: Sequence[Message], num_beams: int = 1, **options: Any) -> str:
        """The whole next message; more than one beam are searched through `generate`. Options as `stream_messages`."""
        if num_beams > 1:
            return self._search_beams(tokenizer, messages, num_beams, **options)
        return fold(self.stream_messages(tokenizer, messages, **options)).text

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
        self, tokenizer: Any, messages: Sequence[Message], parameters: dict[str, Any]
    ) -> tuple[list[int], GenerationConfig, int]:
        """Prompt ids, how they are answered, and the number of rounds dropped to fit."""
        config = GenerationConfig.of(chat_defaults(self), **parameters)
        limit = min(config.max_length, self.spec.context_limit)  # type: ignore[attr-defined]
        prompt = self.encode_chat(tokenizer, messages, limit)
        return prompt.input_ids, config, prompt.dropped_rounds

    def _search_beams(
        self,
        tokenizer: Any,
        messages: Sequence[Message],
        num_beams: int,
        processors: Sequence[LogitsProcessor] = (),
        clean_up: Stages | None = None,
        **parameters: Any,
    ) -> str:
        import torch

        model: Any = self
        own, others = split_parameters(parameters)
        ids, config, _ = self._prompt(tokenizer, messages, own)
        arguments = library_arguments(config, len(ids), model.spec.context_limit)
        output = model.generate(
            torch.tensor([ids], device=model.device),
            logits_processor=list(processors),
            **{**arguments, **others, "num_beams": num_beams, "return_dict_in_generate": False},
        )
        new_ids = [i for i in output[0, len(ids) :].tolist() if i not in model.spec.eos_ids]
        return run_stages((clean_up or model.spec.clean_up)(), tokenizer.decode(new_ids))
