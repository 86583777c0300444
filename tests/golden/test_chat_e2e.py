"""Upstream's chat() and stream_chat() run for real: genuine vocabulary, tiny model with weights from a formula."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration, ChatGLMTokenizer
from tests.golden.cases import facts, fill_by_formula
from tests.tokenizers import genuine_tokenizer

GOLDEN = facts("chat_e2e_v1", "chat_e2e")
ITEMS = GOLDEN["items"]


@pytest.fixture(scope="module")
def model() -> ChatGLMForConditionalGeneration:
    network = ChatGLMForConditionalGeneration(ChatGLMConfig(**GOLDEN["config"]))
    fill_by_formula(network, GOLDEN)
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
