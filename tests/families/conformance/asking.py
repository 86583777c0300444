"""Questions to a tiny model, the same for every family, and what is compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from chatglm.engine.decoder import BatchDecoder
from chatglm.generation.config import GenerationConfig
from chatglm.messages import Message
from chatglm.pipeline import Pipeline, load_pipeline

QUERIES = ("hello", "你好，世界。", "how are you", "the quick brown fox " * 3)
LENGTH = {"max_new_tokens": 8, "min_new_tokens": 8}
GREEDY = {**LENGTH, "temperature": 0}


def asked(query: str) -> list[Message]:
    return [Message("user", query)]


def answers(pipe: Pipeline, adapters: Sequence[bool] = (True,) * len(QUERIES)) -> list[list[int]]:
    """Prompts and greedy answers to all queries, which run together, as ids: the text of nonsense may be empty."""
    return tokens_with(pipe, QUERIES, adapters)


def answers_of(folder: Any, **options: Any) -> list[list[int]]:
    """Those of a folder."""
    with load_pipeline(folder, **{"device": "cpu", "dtype": "fp32", **options}) as pipe:
        return answers(pipe)


def prompt_ids(pipe: Pipeline, query: str = QUERIES[-1]) -> list[int]:
    return list(pipe.family.encode_chat(pipe.tokenizer, asked(query), 100).input_ids)


@torch.inference_mode()
def logits(pipe: Pipeline, query: str = QUERIES[-1]) -> Tensor:
    """[1, T, V] of a prompt, without a cache."""
    return pipe.model(torch.tensor([prompt_ids(pipe, query)]))


def logits_of(folder: Any, **options: Any) -> Tensor:
    """Those of a folder."""
    with load_pipeline(folder, **{"device": "cpu", "dtype": "fp32", **options}) as pipe:
        return logits(pipe)


def error(ours: Tensor, expected: Tensor) -> float:
    return float((ours - expected).norm() / expected.norm())


@torch.inference_mode()
def cached_logits(pipe: Pipeline, ids: Sequence[int], num_steps: int) -> Tensor:
    """[num_steps + 1, V]: after all but the last `num_steps` ids, and after each of these."""
    decoder = BatchDecoder(pipe.model)
    prompt = torch.tensor([ids[: len(ids) - num_steps]])
    layout, kv_cache = decoder.prompt_layout(prompt), decoder.new_cache(len(ids))
    rows = [decoder.prefill(prompt, layout, kv_cache)]
    rows += [decoder.decode(torch.tensor([[i]]), [layout], [kv_cache]) for i in ids[len(ids) - num_steps :]]
    return torch.cat(rows)


def tokens_with(
    pipe: Pipeline, queries: Sequence[str], adapters: Sequence[bool] = (True,) * len(QUERIES)
) -> list[list[int]]:
    """Ids of prompt and greedy answer of each query, all submitted together, without the last one."""
    seen: list[list[int]] = [[] for _ in queries]

    def recorder(number: int) -> Any:
        def record(ids: Tensor, logits_1V: Tensor) -> Tensor:
            seen[number] = ids[0].tolist()
            return logits_1V

        return record

    config = GenerationConfig.of({"max_length": 100}, **GREEDY)
    handles = [
        pipe.engine.submit(
            prompt_ids(pipe, query), config, uses_adapter=adapters[number], processors=[recorder(number)]
        )
        for number, query in enumerate(queries)
    ]
    for handle in handles:
        assert handle.result(60).completion_tokens == GREEDY["max_new_tokens"]
    return seen
