"""One request alone: limits, stopping, cancelling, errors, seeds. Texts of real models: golden/test_chat_e2e.py."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chatglm.engine.solo import stream_alone
from chatglm.errors import InvalidLogitsError, OutOfMemoryError, PromptTooLongError
from chatglm.generation.config import GenerationConfig
from chatglm.generation.deltas import Delta
from tests.golden.cases import build, facts, tensors
from tests.scripted import EOS, NAN, CharacterTokenizer, ScriptedDecoder, generate_ids

PROMPT = [1, 2, 3]


def stream(model: ScriptedDecoder, **parameters: object) -> list[Delta]:
    config = GenerationConfig.of({"do_sample": False}, **parameters)
    return list(stream_alone(model, CharacterTokenizer(), PROMPT, config))


def text_of(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


def test_ends_at_the_end_token() -> None:
    deltas = stream(ScriptedDecoder("hello"))
    assert text_of(deltas) == "hello"
    assert [delta.finish_reason for delta in deltas[:-1]] == [None] * (len(deltas) - 1)
    assert deltas[-1].finish_reason == "stop"
    assert (deltas[-1].prompt_tokens, deltas[-1].completion_tokens) == (3, 5)


@pytest.mark.parametrize("limits", [{"max_length": 5}, {"max_new_tokens": 2}, {"max_length": 9, "max_new_tokens": 2}])
def test_the_last_token_before_a_limit_is_delivered(limits: dict[str, int]) -> None:
    """CHAT-05: upstream's stream loses it."""
    deltas = stream(ScriptedDecoder("hello"), **limits)
    assert text_of(deltas) == "he"
    assert (deltas[-1].finish_reason, deltas[-1].completion_tokens) == ("length", 2)


def test_an_immediate_stop_is_one_empty_answer() -> None:
    """CHAT-05: upstream's stream yields nothing at all."""
    deltas = stream(ScriptedDecoder(""))
    assert [(delta.text, delta.finish_reason) for delta in deltas] == [("", "stop")]


def test_max_length_is_clamped_to_the_context() -> None:
    deltas = stream(ScriptedDecoder("x" * 50, context=7), max_length=20000)
    assert (text_of(deltas), deltas[-1].finish_reason) == ("xxxx", "length")


@pytest.mark.parametrize(("context", "max_length"), [(3, 100), (100, 3), (2, 2)])
def test_a_prompt_that_leaves_no_room_is_refused_before_any_step(context: int, max_length: int) -> None:
    """CHAT-06."""
    model = ScriptedDecoder("x", context=context)
    with pytest.raises(PromptTooLongError, match="3 tokens"):
        stream(model, max_length=max_length)
    assert model.num_steps == 0


@given(
    text=st.text(st.sampled_from("ab,中，\n E🙂"), max_size=30),
    stops=st.lists(st.text(st.sampled_from("ab,中"), min_size=1, max_size=4), max_size=3),
    limit=st.integers(1, 40),
)
@settings(max_examples=80, deadline=None)
def test_stop_strings_that_span_tokens(text: str, stops: list[str], limit: int) -> None:
    text = "".join(c for c in text if ord(c) < 0x10000)
    whole = text_of(stream(ScriptedDecoder(text), max_new_tokens=limit))
    deltas = stream(ScriptedDecoder(text), max_new_tokens=limit, stop=tuple(stops))
    cut = min((whole.find(stop) for stop in stops if stop in whole), default=len(whole))
    assert text_of(deltas) == whole[:cut]
    if cut < len(whole):
        assert deltas[-1].finish_reason == "stop"


def test_a_stop_string_saves_steps() -> None:
    model = ScriptedDecoder("one. two. three. four.")
    assert text_of(stream(model, stop="two")) == "one. "
    assert model.num_steps <= len("one. two") + 1


def test_cancel_takes_effect_before_the_next_step() -> None:
    model = ScriptedDecoder("x" * 100)
    config = GenerationConfig(do_sample=False)
    deltas = list(stream_alone(model, CharacterTokenizer(), PROMPT, config, is_cancelled=lambda: model.num_steps >= 7))
    assert model.num_steps == 7
    assert (text_of(deltas), deltas[-1].finish_reason) == ("x" * 7, "cancelled")


def test_invalid_logits_deliver_the_text_so_far_then_raise() -> None:
    """CHAT-08."""
    deltas = []
    with pytest.raises(InvalidLogitsError):
        for delta in stream_alone(
            ScriptedDecoder([ord("o"), ord("k"), NAN]), CharacterTokenizer(), PROMPT, GenerationConfig(do_sample=False)
        ):
            deltas.append(delta)
    assert (text_of(deltas), deltas[-1].finish_reason) == ("ok", "error")


def test_memory_that_runs_out_is_an_error_and_keeps_the_text() -> None:
    def fail(step: int) -> None:
        if step == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    deltas = []
    with pytest.raises(OutOfMemoryError, match=r"at 5 tokens.*--max-length"):
        for delta in stream_alone(
            ScriptedDecoder("hello", on_step=fail), CharacterTokenizer(), PROMPT, GenerationConfig(do_sample=False)
        ):
            deltas.append(delta)
    assert (text_of(deltas), deltas[-1].finish_reason) == ("he", "error")


@pytest.mark.parametrize("minimum", [{"min_new_tokens": 4}, {"min_length": 7}])
def test_a_minimum_puts_the_end_off(minimum: dict[str, int]) -> None:
    deltas = stream(ScriptedDecoder([EOS, EOS, EOS, ord("a"), EOS]), **minimum)
    assert deltas[-1].completion_tokens == 4


def test_another_end_token() -> None:
    """CHAT-10."""
    deltas = stream(ScriptedDecoder("hello"), eos_token_id=ord("l"))
    assert (text_of(deltas), deltas[-1].finish_reason) == ("he", "stop")


def test_processors_see_ids_and_scores() -> None:
    """CHAT-10: transformers' logits processors run before our own steps."""
    seen: list[tuple[int, ...]] = []

    def turn_into_z(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(ids.shape))
        return scores.index_fill(1, torch.tensor([ord("z")]), 99.0)

    config = GenerationConfig(do_sample=False, max_new_tokens=3)
    deltas = list(
        stream_alone(ScriptedDecoder("hello"), CharacterTokenizer(), PROMPT, config, processors=[turn_into_z])
    )
    assert text_of(deltas) == "zzz"
    assert seen == [(1, 3), (1, 4), (1, 5)]


def test_processors_may_forbid_tokens() -> None:
    """By minus infinity, as transformers' own do; from the network itself it would mean an overflow."""
    forbids_l = lambda ids, scores: scores.index_fill(1, torch.tensor([ord("l")]), -torch.inf)  # noqa: E731
    for do_sample in (False, True):
        config = GenerationConfig(do_sample=do_sample, temperature=0.01, max_new_tokens=5)
        deltas = list(
            stream_alone(ScriptedDecoder("hello"), CharacterTokenizer(), PROMPT, config, processors=[forbids_l])
        )
        assert text_of(deltas).startswith("he")
        assert "l" not in text_of(deltas)


@pytest.mark.parametrize("case", ["greedy", "greedy_mask"])
def test_loop_equals_the_original(case: str) -> None:
    golden = tensors("chatglm_v1/main", case)
    model = build("chatglm_v1/main", eos_token_id=1_000_000)
    prompt = golden["input_ids"][0].tolist()
    expected = golden["sequences"][0, len(prompt) :].tolist()
    config = GenerationConfig(do_sample=False, max_new_tokens=len(expected))
    assert generate_ids(model, prompt, config) == [*expected, "length"]


def test_loop_with_a_prefix_equals_the_original() -> None:
    for folder in ("prefix_embedding", "prefix_projection"):
        golden = tensors(f"chatglm_v1/{folder}", "incremental_and_greedy")
        num_prompt = facts(f"chatglm_v1/{folder}", "incremental_and_greedy")["n_prompt"]
        prompt, expected = golden["greedy_sequences"][0].tensor_split([num_prompt])
        config = GenerationConfig(do_sample=False, max_new_tokens=len(expected))
        model = build(f"chatglm_v1/{folder}", eos_token_id=1_000_000)
        assert generate_ids(model, prompt.tolist(), config) == [*expected.tolist(), "length"]


def test_same_seed_same_ids_and_other_randomness_does_not_matter() -> None:
    model = build("chatglm_v1/main", eos_token_id=1_000_000)
    prompt = tensors("chatglm_v1/main", "greedy")["input_ids"][0].tolist()

    def ids(seed: int | None) -> list[int | str]:
        config = GenerationConfig(seed=seed, max_new_tokens=15, temperature=2.0, top_p=1.0)
        return generate_ids(model, prompt, config)

    first = ids(5)
    torch.rand(100)
    assert ids(5) == first
    assert len({tuple(ids(seed)) for seed in range(5)}) > 1
    assert len(ids(None)) == 16
