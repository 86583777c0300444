"""Greedy and seeded ids of every request equal those of the same request run alone, on real networks."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chatglm.engine import Engine
from chatglm.engine.decoder import BatchDecoder
from chatglm.engine.solo import stream_alone
from chatglm.generation.config import GenerationConfig
from chatglm.generation.deltas import Delta
from chatglm.loading import load
from chatglm.models.chatglm.model import ChatGLMForConditionalGeneration
from tests.engine.rounding import skip_without_even_bfloat16
from tests.golden.cases import build

PREFIXES = ("prefix_embedding", "prefix_projection")
SMALL = ("main", "one_row", *PREFIXES, "bf16", "int8", "int4")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Products so small lose more by a second thread than they gain, most of all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class IdTokenizer:
    """Shows ids as they are: id n is the n-th Chinese character."""

    clean_up_tokenization_spaces = False
    leading_spaces = "keep"

    def surface(self, token_id: int) -> str:
        return chr(0x4E00 + token_id)


@functools.cache
def network(name: str) -> ChatGLMForConditionalGeneration:
    """The demo model, or a tiny random one that never ends by itself, as the name says."""
    if name.startswith("demo"):
        return load("demo", dtype=name[-4:] if "bf16" in name else "auto").model
    changes = {"position_encoding_2d": False} if name == "one_row" else {}
    model = build(f"chatglm_v1/{name if name in PREFIXES else 'main'}", eos_token_id=1_000_000, **changes)
    if name.startswith("int"):
        model.quantize(int(name[-1]))
    return model.bfloat16() if name == "bf16" else model


@dataclass
class Asked:
    """A request: seeds of its prompt ids, whether an answer is begun in it, and when it comes."""

    words: list[int]
    has_gmask: bool
    begun: list[int]
    config: GenerationConfig
    pause: int

    def ids(self, config: Any) -> list[int]:
        first, last = config.pad_token_id + 1, config.mask_token_id
        words, begun = ([first + n % (last - first) for n in seeds] for seeds in (self.words, self.begun))
        return [*words, config.gmask_token_id if self.has_gmask else last, config.bos_token_id, *begun]


asked = st.builds(
    Asked,
    words=st.lists(st.integers(0, 10**6), max_size=40),
    has_gmask=st.booleans(),
    begun=st.lists(st.integers(0, 10**6), max_size=2),
    config=st.builds(
        GenerationConfig,
        do_sample=st.booleans(),
        seed=st.integers(0, 9),
        temperature=st.sampled_from([0.8, 1.5]),
        top_p=st.sampled_from([0.7, 1.0]),
        max_new_tokens=st.integers(1, 12),
        repetition_penalty=st.sampled_from([1.0, 1.2]),
    ),
    pause=st.integers(0, 4),
)


def alone(model: Any, request: Asked) -> list[Delta]:
    return list(stream_alone(BatchDecoder(model), IdTokenizer(), request.ids(model.config), request.config))


@pytest.mark.parametrize(
    "name", [*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in ("demo", "demo in bf16"))]
)
@given(requests=st.lists(asked, min_size=2, max_size=5))
@settings(max_examples=8, deadline=None)
def test_together_as_alone(name: str, requests: list[Asked]) -> None:
    if "bf16" in name:
        skip_without_even_bfloat16()
    model = network(name)
    engine = Engine(BatchDecoder(model), IdTokenizer(), max_running=4)
    handles = []
    for request in requests:
        time.sleep(request.pause * 0.002)
        handles.append(engine.submit(request.ids(model.config), request.config))
    answers = [list(handle) for handle in handles]
    engine.close()
    assert answers == [alone(model, request) for request in requests]
