"""Networks of several pages, and engines on them that keep everything on the device, for tests of the graph runner."""

from __future__ import annotations

import copy
import functools
from dataclasses import replace
from typing import Any

from chatglm.engine import Engine
from chatglm.engine.decoder import BatchDecoder
from chatglm.engine.solo import stream_alone
from chatglm.generation.config import GenerationConfig
from tests.engine.test_exactness import IdTokenizer
from tests.engine.test_exactness import network as short_network

NAMES = ("main", "one_row", "prefix_embedding", "prefix_projection", "int8", "int4")


@functools.cache
def network(name: str) -> Any:
    """That of the same name, with a context of several pages."""
    model = copy.deepcopy(short_network(name))
    model.spec = replace(model.spec, context_limit=400)
    model.config.max_sequence_length = 400
    return model


def ids_of(seeds: list[int], config: Any) -> list[int]:
    """A whole prompt of the family, from any numbers."""
    first, last = config.pad_token_id + 1, config.mask_token_id
    return [*(first + n % (last - first) for n in seeds), config.gmask_token_id, config.bos_token_id]


@functools.cache
def alone(name: str, prompt: tuple[int, ...], config: GenerationConfig) -> str:
    return "".join(delta.text for delta in stream_alone(BatchDecoder(network(name)), IdTokenizer(), prompt, config))


def engine_on(model: Any, **limits: Any) -> Engine:
    return Engine(BatchDecoder(model), IdTokenizer(), uses_graphs=True, **limits)


def answers(model: Any, prompts: list[list[int]], configs: list[GenerationConfig], **limits: Any) -> list[str]:
    one = engine_on(model, **limits)
    handles = [one.submit(prompt, config) for prompt, config in zip(prompts, configs, strict=True)]
    texts = [handle.result(60).text for handle in handles]
    stats = one.stats()
    assert stats.blocks_free == stats.blocks_total
    one.close()
    return texts
