"""chat() and stream_chat() of ChatGLM2-6B, ChatGLM3-6B and GLM-4 run for real: genuine vocabularies, tiny models."""

from __future__ import annotations

import functools
import itertools
from importlib import import_module
from typing import Any

import pytest

from chatglm.models import FAMILIES
from tests.family_tokenizers import genuine_folder
from tests.golden.cases import facts, fill_by_formula

PREFIXES = {"chatglm2": "ChatGLM2", "chatglm3": "ChatGLM3", "glm4": "GLM4"}
CASES = [(name, number) for name in PREFIXES for number in range(5)]


@functools.cache
def model_and_tokenizer(name: str) -> tuple[Any, Any, list[dict[str, Any]]]:
    golden = facts(f"chat_e2e_{name}", "chat_e2e")
    family = next(row for row in FAMILIES if row.prefix == PREFIXES[name])
    model = family.model_class(family.config_class(**golden["config"]))
    fill_by_formula(model, golden)
    return model.eval(), family.tokenizer_class.from_pretrained(genuine_folder(name)), golden["items"]


def has_typed_role(name: str, item: dict[str, Any]) -> bool:
    """Upstream's GLM-4 makes role tokens of typed names."""
    return name == "glm4" and "<|" in item["query"]


@pytest.mark.parametrize(("name", "number"), CASES)
def test_chat(name: str, number: int) -> None:
    """With roles, upstream drops the last token, whatever it is: the golden answer is then the beginning of ours."""
    model, tokenizer, items = model_and_tokenizer(name)
    item = items[number]
    if has_typed_role(name, item):
        pytest.skip("upstream makes a role token of a typed name")
    arguments = {"max_length": item["max_length"], "do_sample": False}
    response, history = model.chat(tokenizer, item["query"], item["history"], **arguments)
    whole = tokenizer.decode(item["new_ids"]).strip()
    assert (response, whole[: len(item["response"])]) == (whole, item["response"])
    if name == "chatglm2":
        assert history == [*map(tuple, item["history"]), (item["query"], response)]
    else:
        answer = item["new_item"] | {"content": response}
        assert history == [*item["history"], {"role": "user", "content": item["query"]}, answer]


@pytest.mark.parametrize(("name", "number"), CASES)
def test_stream_chat(name: str, number: int) -> None:
    model, tokenizer, items = model_and_tokenizer(name)
    item = items[number]
    if has_typed_role(name, item):
        pytest.skip("upstream makes a role token of a typed name")
    arguments = {"max_length": item["max_length"], "do_sample": False}
    yields = list(model.stream_chat(tokenizer, item["query"], item["history"], **arguments))
    texts = [text for text, _ in yields]
    assert (texts[-1], yields[-1][1]) == model.chat(tokenizer, item["query"], item["history"], **arguments)
    assert all(longer.startswith(text) for text, longer in itertools.pairwise(texts))


@pytest.mark.parametrize("name", PREFIXES)
def test_template_is_that_of_the_model(name: str) -> None:
    encode_chat = import_module(f"chatglm.models.{name}.template").encode_chat
    assert model_and_tokenizer(name)[0].encode_chat is encode_chat
