"""Answers of every family: together as alone, streamed as whole, cached as not, and their ends."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from chatglm.engine.decoder import BatchDecoder
from chatglm.errors import InvalidRequestError
from chatglm.generation.deltas import fold
from chatglm.messages import Message
from chatglm.pipeline import Pipeline, load_pipeline
from tests.families.cases import FamilyCase
from tests.families.conformance.asking import (
    GREEDY,
    LENGTH,
    QUERIES,
    asked,
    cached_logits,
    error,
    logits,
    prompt_ids,
    tokens_with,
)


def test_the_family_is_recognised(case: FamilyCase, pipe: Pipeline) -> None:
    assert pipe.family is case.family()
    assert case.row is None or pipe.family is case.row
    assert pipe.context_limit == pipe.model.spec.context_limit == 128
    assert pipe.defaults["temperature"] == pipe.model.spec.chat_defaults["temperature"]


def test_alone_and_among_others(pipe: Pipeline) -> None:
    together = tokens_with(pipe, QUERIES)
    assert together == [tokens_with(pipe, [query])[0] for query in QUERIES]
    assert len(set(map(tuple, together))) == len(QUERIES)


def test_streamed_and_whole(pipe: Pipeline) -> None:
    handle = pipe.submit(asked("hello"), **GREEDY)
    deltas = list(handle)
    whole = handle.result(60)
    assert "".join(delta.text for delta in deltas) == whole.text == pipe.chat("hello", **GREEDY)[0]
    assert (whole.finish_reason, whole.completion_tokens) == ("length", GREEDY["max_new_tokens"])
    assert whole.prompt_tokens == len(prompt_ids(pipe, "hello"))
    assert fold(pipe.stream("hello", **GREEDY)) == whole


def test_text_is_what_the_tokenizer_decodes(pipe: Pipeline) -> None:
    (ids,) = tokens_with(pipe, ["hello"])
    text = pipe.tokenizer.decode(ids[len(prompt_ids(pipe, "hello")) :])
    for stage in pipe.model.spec.clean_up():
        text = stage.push(text) + stage.finish()
    assert pipe.chat("hello", **{**GREEDY, "max_new_tokens": 7, "min_new_tokens": 7})[0] == text


@pytest.mark.parametrize("query", QUERIES)
def test_a_cut_answer_goes_on_as_if_it_had_not_been(pipe: Pipeline, query: str) -> None:
    """Where its text gives back its ids, the rest is that of the uncut answer; where not, there is one all the same."""
    whole, cut = (pipe.chat(query, temperature=0, max_new_tokens=n, min_new_tokens=n)[0] for n in (12, 5))
    rest = pipe.submit(asked(query), answer_start=cut, temperature=0, max_new_tokens=7, min_new_tokens=7).result(60)
    ids = pipe.model.spec.encode_answer(pipe.tokenizer, cut) if cut else []
    assert rest.prompt_tokens == len(prompt_ids(pipe, query)) + len(ids)
    (generated,) = tokens_with(pipe, [query])
    if generated[len(prompt_ids(pipe, query)) :][:5] == ids:
        assert cut + rest.text == whole
    with pytest.raises(InvalidRequestError):
        pipe.submit(asked(query), answer_start="hello " * 200)


def test_raw_text(pipe: Pipeline) -> None:
    whole = pipe.complete("hello", **GREEDY).result(60)
    ids = pipe.tokenizer.build_inputs_with_special_tokens(pipe.tokenizer.encode_plain("hello"))
    assert whole.prompt_tokens == len(ids)
    assert pipe.generate("hello", **GREEDY) == whole.text


def test_seeds(pipe: Pipeline) -> None:
    options = {**LENGTH, "temperature": 2.0, "top_p": 1.0, "top_k": 0}
    drawn = [pipe.chat("hello", seed=seed, **options)[0] for seed in (1, 2, 1)]
    assert drawn[0] == drawn[2] != drawn[1]


@pytest.mark.parametrize("num_steps", [0, 1, 5])
def test_cached_and_not(pipe: Pipeline, num_steps: int) -> None:
    ids = prompt_ids(pipe) + [7, 8, 9, 10, 11][:num_steps]
    whole = logits_of_ids(pipe, ids)[0, len(ids) - num_steps - 1 :]
    assert error(cached_logits(pipe, ids, num_steps), whole) < 1e-5


@torch.inference_mode()
def logits_of_ids(pipe: Pipeline, ids: list[int]) -> torch.Tensor:
    return pipe.model(torch.tensor([ids]))


def test_pads_on_the_left_change_nothing(pipe: Pipeline) -> None:
    ids = prompt_ids(pipe)
    padded = logits_of_ids(pipe, [pipe.model.spec.pad_id] * 3 + ids)[:, 3:]
    assert error(padded, logits(pipe)) < 1e-5


def test_visibility(pipe: Pipeline) -> None:
    """Only where a prompt sees all of itself does its last token change what is said of its first."""
    ids = prompt_ids(pipe)
    column = len(ids) - 4
    other = [*ids[:column], ids[column] + 1, *ids[column + 1 :]]
    changed = error(logits_of_ids(pipe, other)[0, 0], logits_of_ids(pipe, ids)[0, 0]) > 1e-4
    assert changed == (pipe.model.spec.visibility == "prefix")


def test_every_stop_id_ends_an_answer(folder: Path) -> None:
    with load_pipeline(folder, device="cpu", dtype="fp32") as pipe:
        forced: list[tuple[int, int]] = []
        steps = iter(range(10**9))

        def force(module: object, inputs: object, logits: torch.Tensor) -> torch.Tensor:
            token, after = forced[-1]
            if next(steps) < after:
                return logits
            return logits.index_fill(-1, torch.tensor([token]), 1e4)

        pipe.model.lm_head.register_forward_hook(force)
        for eos_id in pipe.model.spec.eos_ids:
            forced.append((eos_id, 3))
            steps = iter(range(10**9))
            whole = pipe.submit(asked("hello"), temperature=0, max_new_tokens=20).result(60)
            assert (whole.finish_reason, whole.completion_tokens) == ("stop", 3)
            steps = iter(range(10**9))
            assert pipe.submit(asked("hello"), **GREEDY).result(60).completion_tokens == GREEDY["max_new_tokens"]


def test_oldest_rounds_are_dropped(pipe: Pipeline) -> None:
    history = [("hello " * 6, "how are you " * 3)] * 4
    conversation = [
        message for asked_, said in history for message in (Message("user", asked_), Message("assistant", said))
    ]
    whole = pipe.submit([*conversation, *asked("hello")], **GREEDY).result(60)
    assert 0 < whole.dropped_rounds < len(history)
    kept = conversation[2 * whole.dropped_rounds :]
    assert pipe.submit([*kept, *asked("hello")], **GREEDY).result(60).text == whole.text
    with pytest.raises(InvalidRequestError):
        pipe.submit(asked("hello " * 200), **GREEDY)


def test_typed_special_tokens_stay_text(pipe: Pipeline) -> None:
    typed = "[gMASK]<sop><|user|>sop</s><eop>"
    assert not set(pipe.tokenizer.encode_plain(typed)) & set(pipe.model.spec.eos_ids)
    assert pipe.tokenizer.decode(pipe.tokenizer.encode_plain(typed)).strip() == typed


def test_ids_that_are_none(pipe: Pipeline) -> None:
    with pytest.raises(InvalidRequestError):
        BatchDecoder(pipe.model).prompt_layout(torch.tensor([[pipe.model.spec.vocab_size]]))


def test_a_position_takes_keys_and_values_of_the_groups(pipe: Pipeline) -> None:
    spec, decoder = pipe.model.spec, BatchDecoder(pipe.model)
    assert decoder.position_bytes == 2 * spec.num_layers * spec.num_kv_heads * spec.head_width * 4
    ids = torch.tensor([prompt_ids(pipe)])
    kv_cache = decoder.new_cache(ids.shape[1])
    with torch.inference_mode():
        decoder.prefill(ids, decoder.prompt_layout(ids), kv_cache)
    keys, _ = kv_cache.layer(0)
    assert keys.shape == (1, spec.num_kv_heads, ids.shape[1], spec.head_width)
