"""Upstream's chat() and stream_chat() run for real: genuine vocabulary, tiny model with weights from a formula."""

from __future__ import annotations

import itertools
import zlib
from typing import Any

import numpy as np
import pytest
import torch

from chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration, ChatGLMTokenizer
from tests.golden.cases import facts
from tests.tokenizers import genuine_tokenizer

GOLDEN = facts("chat_e2e_v1", "chat_e2e")
ITEMS = GOLDEN["items"]


def formula(name: str, shape: torch.Size) -> torch.Tensor:
    """The golden's weights: a hash of seed, name and flat index, scaled by the first matching rule."""
    x = np.arange(int(np.prod(shape)), dtype=np.uint32) * np.uint32(0x9E3779B1)
    x += np.uint32(zlib.crc32(f"{GOLDEN['seed']}:{name}".encode()))
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x ^= x >> np.uint32(shift)
        x *= np.uint32(factor)
    x ^= x >> np.uint32(16)
    offset, scale = rule(name)
    values = np.float32(offset) + (scale * (x.astype(np.float64) / 2**31 - 1)).astype(np.float32)
    return torch.from_numpy(values.reshape(shape))


def rule(name: str) -> tuple[float, float]:
    if "norm" in name and name.endswith("weight"):
        return 1.0, 0.25
    if name.endswith("bias"):
        return 0.0, 0.25
    if "word_embeddings" in name:
        return 0.0, 1.0
    return 0.0, 1.5 if "lm_head" in name else 0.4


@pytest.fixture(scope="module")
def model() -> ChatGLMForConditionalGeneration:
    network = ChatGLMForConditionalGeneration(ChatGLMConfig(**GOLDEN["config"]))
    network.load_state_dict({name: formula(name, tensor.shape) for name, tensor in network.state_dict().items()})
    for name, (first, second, last, total) in GOLDEN["weights_check_first_second_last_sum"].items():
        flat = network.get_parameter(name).detach().flatten().double()
        assert flat[[0, 1, -1]].tolist() == [first, second, last]
        assert float(flat.sum()) == pytest.approx(total, abs=1e-6 * flat.numel())
    return network.eval()


@pytest.fixture(scope="module")
def tokenizer() -> ChatGLMTokenizer:
    return genuine_tokenizer()


@pytest.mark.parametrize("number", range(len(ITEMS)))
def test_chat(number: int, model: ChatGLMForConditionalGeneration, tokenizer: ChatGLMTokenizer) -> None:
    """CHAT-01, CHAT-02, CHAT-03."""
    item = ITEMS[number]
    history = [tuple(entry) for entry in item["history"]]
    arguments: dict[str, Any] = {"max_length": item["max_length"], "temperature": 0}
    response, new_history = model.chat(tokenizer, item["query"], history, **arguments)
    assert response == item["response"]
    assert new_history == [*history, (item["query"], response)]
    assert history == [tuple(entry) for entry in item["history"]]


@pytest.mark.parametrize("number", range(len(ITEMS)))
def test_stream_chat(number: int, model: ChatGLMForConditionalGeneration, tokenizer: ChatGLMTokenizer) -> None:
    """CHAT-04, CHAT-07: growing answers, each the start of the next; unlike upstream's, the last is the whole one."""
    item = ITEMS[number]
    yields = list(model.stream_chat(tokenizer, item["query"], item["history"], item["max_length"], temperature=0))
    texts = [text for text, _ in yields]
    assert texts[-1] == item["response"]
    for text, longer in itertools.pairwise(texts):
        assert longer.startswith(text)
    assert yields[-1][1][-1] == (item["query"], item["response"])


def test_beams_through_chat(model: ChatGLMForConditionalGeneration, tokenizer: ChatGLMTokenizer) -> None:
    """CHAT-10: one beam found by `generate` is the greedy answer; several are searched too."""
    item = ITEMS[0]
    prompt = torch.tensor([item["prompt_ids"]])
    best = model.generate(prompt, max_length=item["max_length"], num_beams=3, do_sample=False)
    response, _ = model.chat(tokenizer, item["query"], [], item["max_length"], num_beams=3, temperature=0)
    assert response == tokenizer.decode(best[0, prompt.shape[1] :].tolist())
