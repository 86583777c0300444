"""Answers by transformers' own `generate`, token by token: for arguments of it that the engine does not have.
Shapes: B rows, n ids so far.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from chatglm.errors import InvalidRequestError
from chatglm.generation.config import GenerationConfig
from chatglm.generation.deltas import Delta
from chatglm.generation.detokenizer import IncrementalDetokenizer
from chatglm.generation.sampling import LogitsProcessor
from chatglm.model_spec import TextStage

ONE_ROW = {"num_beams": 1, "num_return_sequences": 1, "return_dict_in_generate": False}
SAMPLING = ("temperature", "top_p", "top_k")
# What changes nothing where beams are not searched.
OF_BEAMS = {*ONE_ROW, "early_stopping", "length_penalty", "use_cache", "pad_token_id", "bos_token_id"}


def split_parameters(parameters: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Those of our `GenerationConfig`, and others that `generate` has; unknown ones are among the first."""
    if parameters.keys() <= GenerationConfig.names():
        return dict(parameters), {}
    from transformers import GenerationConfig as LibraryConfig

    of_library = {name for name in vars(LibraryConfig()) if not name.startswith("_")}
    of_library |= {"generation_config", "stopping_criteria", "prefix_allowed_tokens_fn"}
    others = {name: parameters[name] for name in parameters.keys() & of_library - GenerationConfig.names()}
    own = {name: value for name, value in parameters.items() if name not in others}
    return own, {name: value for name, value in others.items() if value is not None}


def library_arguments(config: GenerationConfig, num_prompt: int, context_limit: int) -> dict[str, Any]:
    """The arguments of `generate` that mean the same; `seed` and `stop` have no such."""
    limit = min(config.max_length, context_limit, num_prompt + (config.max_new_tokens or context_limit))
    arguments: dict[str, Any] = {"max_length": limit, "do_sample": not config.is_greedy}
    names = ["repetition_penalty", "min_length", "min_new_tokens", "eos_token_id"]
    arguments |= {name: value for name in names if (value := getattr(config, name))}
    return arguments | {name: getattr(config, name) for name in (() if config.is_greedy else SAMPLING)}


def stream_ids(model: Any, input_ids: Tensor, *, seed: int | None = None, **arguments: Any) -> Iterator[Tensor]:
    """The ids so far, int64 [B, n], after each token, but not with the end token; as `generate` would make them.

    All arguments are checked at once: raises InvalidRequestError.
    """
    generator = None if seed is None else torch.Generator(input_ids.device).manual_seed(seed & (2**63 - 1))

    def steps(model: Any, input_ids: Tensor, **prepared: Any) -> Iterator[Tensor]:
        return _steps(model, input_ids, generator, **prepared)

    try:
        return model.generate(input_ids, custom_generate=steps, **{**arguments, **ONE_ROW})
    except (ValueError, TypeError) as error:
        raise InvalidRequestError(f"These parameters cannot be used: {error}") from None


def _steps(
    model: Any,
    input_ids: Tensor,
    generator: torch.Generator | None,
    logits_processor: Callable[[Tensor, Tensor], Tensor],
    stopping_criteria: Callable[[Tensor, Any], Tensor],
    generation_config: Any,
    **model_inputs: Any,
) -> Iterator[Tensor]:
    """The loop of the library's sampling, as a generator."""
    eos, pad = generation_config._eos_token_tensor, generation_config._pad_token_tensor
    is_running = torch.ones(len(input_ids), dtype=torch.bool, device=input_ids.device)
    length = None  # of what follows the cache: the whole prompt, then one token
    while is_running.any():
        with torch.no_grad():
            inputs = model.prepare_inputs_for_generation(input_ids, next_sequence_length=length, **model_inputs)
            outputs = model(**inputs, return_dict=True)
            model_inputs, length = model._update_model_kwargs_for_generation(outputs, model_inputs), 1
            logits = logits_processor(input_ids, outputs.logits[:, -1].float())
        if generation_config.do_sample:
            tokens = torch.multinomial(logits.softmax(dim=-1), 1, generator=generator)[:, 0]
        else:
            tokens = logits.argmax(dim=-1)
        if pad is not None:
            tokens = torch.where(is_running, tokens, pad)
        input_ids = torch.cat([input_ids, tokens[:, None]], dim=1)
        is_end = torch.isin(tokens, eos) if eos is not None else torch.zeros_like(is_running)
        has_text = bool((is_running & ~is_end).any())
        is_running = is_running & ~stopping_criteria(input_ids, None)
        if has_text:
            yield input_ids


def stream_by_library(
    model: Any,
    tokenizer: Any,
    prompt_ids: Sequence[int],
    config: GenerationConfig,
    *,
    dropped_rounds: int,
    processors: Sequence[LogitsProcessor],
    is_cancelled: Callable[[], bool],
    clean_up: Callable[[], list[TextStage]] | None = None,
    others: Mapping[str, Any],
) -> Iterator[Delta]:
    """The answer as deltas, like `stream_alone`; `others` are further arguments of `generate`."""
    text = IncrementalDetokenizer(tokenizer, config.stop, (clean_up or model.spec.clean_up)())
    arguments = library_arguments(config, len(prompt_ids), model.spec.context_limit)
    ids = torch.tensor([prompt_ids], device=model.device)
    arguments |= {"logits_processor": list(processors), "tokenizer": tokenizer, **others}
    stream = stream_ids(model, ids, seed=config.seed, **arguments)

    def delta(new: str, count: int, reason: Any = None) -> Delta:
        return Delta(new, reason, len(prompt_ids), count, dropped_rounds)

    def deltas() -> Iterator[Delta]:
        count = 0
        try:
            for so_far in stream:
                count = so_far.shape[1] - len(prompt_ids)
                yield delta(text.push(int(so_far[0, -1])), count)
                if text.stopped or is_cancelled():
                    break
        except Exception:
            yield delta(text.finish(), count, "error")
            raise
        is_full = len(prompt_ids) + count >= arguments["max_length"]
        rest = text.finish()
        yield delta(
            rest, count, "cancelled" if is_cancelled() else "length" if is_full and not text.stopped else "stop"
        )

    return deltas()
