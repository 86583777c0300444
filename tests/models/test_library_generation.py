"""`stream_generate`, and what `chat` and `stream_chat` take of transformers' `generate`, as public code calls them."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, LogitsProcessor, StoppingCriteria

from chatglm.errors import InvalidLogitsError, InvalidRequestError
from chatglm.loading import load
from tests.folders import make_folder


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tiny")
    make_folder(folder, "safetensors", dtype=torch.float32, max_sequence_length=200)
    return load(folder, device="cpu", dtype="fp32")


class Raised(LogitsProcessor):
    """Makes one token the best, and counts its calls."""

    def __init__(self, token_id: int) -> None:
        self.token_id, self.lengths = token_id, []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.lengths.append(input_ids.shape[1])
        scores[:, self.token_id] += 1000
        return scores


class AfterTokens(StoppingCriteria):
    """Stops at a length, as a program does that listens for a button."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), input_ids.shape[1] >= self.length)


def inputs_of(loaded: Any, *texts: str) -> dict[str, torch.Tensor]:
    return dict(loaded.tokenizer(list(texts), return_tensors="pt", padding=True))


CASES: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "sampled": {"do_sample": True, "top_p": 0.7, "top_k": 30, "temperature": 0.95},
    "penalty": {"do_sample": False, "repetition_penalty": 1.4, "no_repeat_ngram_size": 2},
    "config": {"generation_config": GenerationConfig(do_sample=True, top_k=3, max_length=40)},
    "criteria": {"do_sample": False, "stopping_criteria": [AfterTokens(15)]},
    "allowed": {"do_sample": False, "prefix_allowed_tokens_fn": lambda row, ids: [40, 41, 42 + ids.shape[0] % 3]},
    "new tokens": {"do_sample": False, "max_new_tokens": 3, "num_beams": 4},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("texts", [["hello"], ["hello", "how are you, quick fox"]], ids=["one", "two"])
def test_streamed_ids_are_those_of_generate(loaded: Any, case: str, texts: list[str]) -> None:
    how = {"max_length": 40, **CASES[case]}
    if "max_new_tokens" in how:
        del how["max_length"]
    inputs = inputs_of(loaded, *texts)
    torch.manual_seed(5)
    expected = loaded.model.generate(**inputs, **{**how, "num_beams": 1})
    torch.manual_seed(5)
    parts = list(loaded.model.stream_generate(**inputs, **how))
    assert all(longer.shape[1] == part.shape[1] + 1 for part, longer in itertools.pairwise(parts))
    assert parts[0].shape == (len(texts), inputs["input_ids"].shape[1] + 1)
    eos = loaded.model.config.eos_token_id
    ends = [(row == eos).nonzero().flatten().tolist() for row in expected]
    for row, whole, end in zip(parts[-1], expected, ends, strict=True):
        stop = end[0] if end else len(whole)
        assert row[:stop].tolist() == whole[:stop].tolist()


def test_as_the_adapters_of_servers_call_it(loaded: Any) -> None:
    """Growing ids [1, n], cut after the prompt, decoded each time; the end token is not among them."""
    eos, inputs = loaded.model.config.eos_token_id, inputs_of(loaded, "hello")
    num_prompt = inputs["input_ids"].shape[1]
    processor = Raised(50)
    answers = []
    for total_ids in loaded.model.stream_generate(
        **inputs, max_length=num_prompt + 6, do_sample=False, top_p=1.0, logits_processor=[processor]
    ):
        assert total_ids.shape[0] == 1
        answers.append(loaded.tokenizer.decode(total_ids.tolist()[0][num_prompt:]))
    assert processor.lengths == list(range(num_prompt, num_prompt + 6))
    assert len(answers) == 6
    assert list(loaded.model.stream_generate(**inputs, max_length=40, logits_processor=[Raised(eos)])) == []


def test_chat_takes_stopping_criteria(loaded: Any) -> None:
    """The answer up to there, greedy or drawn with a seed; what the engine does is not changed."""
    model, tokenizer = loaded.model, loaded.tokenizer
    for how in ({"temperature": 0}, {"seed": 3}):
        whole = model.chat(tokenizer, "hello", [], max_length=60, stopping_criteria=[AfterTokens(1000)], **how)
        part = model.chat(tokenizer, "hello", [], max_length=60, stopping_criteria=[AfterTokens(12)], **how)
        assert whole[0].startswith(part[0].rstrip("\ufffd"))
        assert len(part[0]) < len(whole[0])
        streamed = list(
            model.stream_chat(tokenizer, "hello", max_length=60, stopping_criteria=[AfterTokens(12)], **how)
        )
        assert streamed[-1] == part
    greedy = {"max_length": 60, "temperature": 0}
    same = model.chat(tokenizer, "hello", stopping_criteria=[AfterTokens(1000)], **greedy)
    assert same == model.chat(tokenizer, "hello", **greedy) == model.chat(tokenizer, "hello", use_cache=True, **greedy)


def test_chat_takes_what_generate_takes(loaded: Any) -> None:
    model, tokenizer = loaded.model, loaded.tokenizer
    greedy = {"max_length": 60, "temperature": 0}
    plain = model.chat(tokenizer, "hello", **greedy)[0]
    ids = tokenizer.encode(plain, add_special_tokens=False)
    forbidden = model.chat(tokenizer, "hello", bad_words_ids=[[i] for i in ids], **greedy)[0]
    assert forbidden != plain
    assert (
        model.chat(tokenizer, "hello", stop="e", no_repeat_ngram_size=60, **greedy)[0]
        == plain.partition("e")[0].rstrip()
    )
    assert model.chat(tokenizer, "hello", num_beams=2, no_repeat_ngram_size=1, max_length=30, do_sample=False)[0]
    deltas = list(model.stream_deltas(tokenizer, "hello", stopping_criteria=[AfterTokens(12)], **greedy))
    assert [delta.finish_reason for delta in deltas if delta.finish_reason] == ["stop"]
    assert deltas[-1].prompt_tokens + deltas[-1].completion_tokens == 12
    full = list(
        model.stream_deltas(tokenizer, "hello", no_repeat_ngram_size=60, min_length=30, max_length=30, temperature=0)
    )
    assert (full[-1].finish_reason, full[-1].prompt_tokens + full[-1].completion_tokens) == ("length", 30)
    cut = list(model.stream_deltas(tokenizer, "hello", no_repeat_ngram_size=60, is_cancelled=lambda: True, **greedy))
    assert (cut[-1].finish_reason, cut[-1].completion_tokens) == ("cancelled", 1)


def test_what_cannot_be_used_is_named(loaded: Any) -> None:
    model, tokenizer = loaded.model, loaded.tokenizer
    with pytest.raises(InvalidRequestError, match="Unknown generation parameter 'temperatur'"):
        model.chat(tokenizer, "hello", temperatur=1, stopping_criteria=[AfterTokens(9)])
    with pytest.raises(InvalidRequestError, match="cannot be used"):
        model.stream_chat(tokenizer, "hello", bad_words_ids=[])

    with pytest.raises(InvalidLogitsError):
        model.lm_head.weight.data[5] = torch.nan
        try:
            model.chat(tokenizer, "hello", no_repeat_ngram_size=9)
        finally:
            model.lm_head.weight.data[5] = 0
