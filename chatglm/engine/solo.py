"""One request alone, in the thread that asks: what `model.chat` and `model.stream_chat` use."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from chatglm.engine.request import Request, never
from chatglm.engine.runner import Decoder, Runner
from chatglm.generation.config import GenerationConfig
from chatglm.generation.deltas import Delta
from chatglm.generation.sampling import LogitsProcessor
from chatglm.model_spec import TextStage


def stream_alone(
    decoder: Decoder,
    tokenizer: Any,
    input_ids: Sequence[int],
    config: GenerationConfig,
    *,
    dropped_rounds: int = 0,
    processors: Sequence[LogitsProcessor] = (),
    is_cancelled: Callable[[], bool] = never,
    clean_up: Callable[[], list[TextStage]] | None = None,
) -> Iterator[Delta]:
    """The answer as deltas; arguments and errors as `Engine.submit`, raised after a delta with reason "error".

    `clean_up`: stages from decoded text to answer; None = those of the model.
    """
    request = Request(
        decoder,
        tokenizer,
        input_ids,
        config,
        dropped_rounds=dropped_rounds,
        processors=processors,
        is_cancelled=is_cancelled,
        clean_up=clean_up,
    )
    return _steps(Runner(decoder), request)


def _steps(runner: Runner, request: Request) -> Iterator[Delta]:
    while request.finish_reason is None:
        request.end_if_unwanted()
        if request.finish_reason is None and request.cache is None:
            runner.prefill([request])
        if request.finish_reason is None:
            runner.decode([request])
        yield from request.take_deltas()
    if request.error is not None:
        raise request.error
