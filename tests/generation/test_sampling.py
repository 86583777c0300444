"""Filters, penalties and drawing, against the original's filtered scores."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chatglm.errors import InvalidLogitsError, InvalidRequestError
from chatglm.generation.config import GenerationConfig
from chatglm.generation.sampling import candidates, forbid, new_generator, penalize_repetition, pick, require_finite
from tests.golden.cases import facts, tensors

SETTINGS = facts("chatglm_v1/sampling", "sampling_filters")["settings"]


@pytest.mark.parametrize("number", range(len(SETTINGS)))
def test_filters(number: int) -> None:
    """Rows 1 and 2 hold ties, where only the kept values are defined, not which of the equal ids."""
    golden = tensors("chatglm_v1/sampling", "sampling_filters")
    setting = SETTINGS[number]
    config = GenerationConfig(
        temperature=setting.get("temperature", 1.0), top_p=setting.get("top_p", 1.0), top_k=setting["effective_top_k"]
    )
    for row, scores in enumerate(golden["scores"]):
        kept, ids = candidates(scores, config)
        expected = golden[f"out.{number}"][row]
        is_kept = expected.isfinite()
        torch.testing.assert_close(kept, expected[is_kept].sort(descending=True).values, rtol=1e-6, atol=0)
        torch.testing.assert_close(
            kept.softmax(0), golden[f"prob.{number}"][row][is_kept].sort(descending=True).values, rtol=1e-5, atol=1e-7
        )
        if row == 0:
            assert set(ids.tolist()) == set(is_kept.nonzero()[:, 0].tolist())


def test_repetition_penalty() -> None:
    golden = tensors("chatglm_v1/sampling", "penalties")
    for row, scores in enumerate(golden["scores"]):
        ours = penalize_repetition(scores, golden["input_ids"][row], 1.2)
        torch.testing.assert_close(ours, golden["repetition_1.2"][row])


def test_minimum_length() -> None:
    golden = tensors("chatglm_v1/sampling", "penalties")
    for row, scores in enumerate(golden["scores"]):
        assert torch.equal(forbid(scores, 4), golden["min_length_10_eos_4"][row])


@pytest.mark.parametrize("kind", ["clean", "nan", "inf", "ninf"])
def test_invalid_scores_are_refused_not_hidden(kind: str) -> None:
    """CHAT-08: upstream turns exactly these scores into token 5 for every row; here they end the request."""
    golden = tensors("chatglm_v1/sampling", "invalid_scores")
    was_replaced = not torch.equal(golden[f"{kind}.in"], golden[f"{kind}.out"])
    if was_replaced:
        with pytest.raises(InvalidLogitsError, match="bf16"):
            require_finite(golden[f"{kind}.in"])
    else:
        require_finite(golden[f"{kind}.in"])


@given(
    scores=st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=40),
    temperature=st.floats(0.05, 3),
    top_k=st.integers(0, 45),
    top_p=st.floats(0, 1),
)
@settings(max_examples=150, deadline=None)
def test_candidates_agree_with_the_library(scores: list[float], temperature: float, top_k: int, top_p: float) -> None:
    """The best token always survives; without ties and off the cut, the kept set is the one of transformers."""
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    row = torch.tensor(scores)
    scaled = row / temperature  # neighbours may meet
    _kept, ids = candidates(row, GenerationConfig(temperature=temperature, top_k=top_k, top_p=top_p))
    assert scaled[ids[0]] == scaled.max()
    if len(set(scaled.tolist())) < len(scores):
        return
    theirs = TemperatureLogitsWarper(temperature)(None, row[None])
    if top_k:
        theirs = TopKLogitsWarper(top_k)(None, theirs)
    probabilities = theirs[0].softmax(0).sort(descending=True).values
    better = probabilities.cumsum(0) - probabilities
    if 0 < top_p < 1 and (better - top_p).abs().min() > 1e-5:
        theirs = TopPLogitsWarper(top_p)(None, theirs)
        assert set(ids.tolist()) == set(theirs[0].isfinite().nonzero()[:, 0].tolist())


def test_greedy_and_seeds() -> None:
    scores = torch.randn(50, generator=torch.Generator().manual_seed(0))
    for config in (
        GenerationConfig(temperature=0),
        GenerationConfig(do_sample=False),
        GenerationConfig(top_k=1),
    ):
        assert pick(scores, config, None) == int(scores.argmax())
    config = GenerationConfig(top_p=1.0, top_k=0, temperature=2.0)
    cpu = torch.device("cpu")

    def draws(seed: int) -> list[int]:
        generator = new_generator(seed, cpu)
        return [pick(scores, config, generator) for _ in range(20)]

    assert draws(7) == draws(7)
    assert draws(7) != draws(8)
    assert new_generator(None, cpu) is None


@pytest.mark.parametrize("temperature", [1e-40, 1e-320])
def test_a_temperature_next_to_nothing_is_greedy(temperature: float) -> None:
    """Divided by it the scores would be infinite."""
    scores = torch.tensor([1.0, 30.0, 29.9, -5.0])
    assert pick(scores, GenerationConfig(temperature=temperature), None) == 1


def test_drawing_follows_the_probabilities() -> None:
    scores = torch.tensor([2.0, 1.0, 0.0, -50.0])
    config = GenerationConfig(temperature=1.0, top_k=0, top_p=1.0)
    generator = new_generator(0, torch.device("cpu"))
    counts = torch.zeros(4)
    for _ in range(4000):
        counts[pick(scores, config, generator)] += 1
    torch.testing.assert_close(counts / 4000, scores.softmax(0), atol=0.03, rtol=0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_length", 0), ("max_length", 2.5), ("max_length", True), ("max_new_tokens", 0), ("top_k", -1),
        ("top_p", 1.01), ("top_p", -0.1), ("top_p", float("nan")), ("temperature", -1), ("temperature", float("inf")),
        ("temperature", "hot"), ("repetition_penalty", 0), ("seed", -1), ("stop", ("",)), ("min_new_tokens", -1),
    ],
)  # fmt: skip
def test_values_out_of_range_are_named(name: str, value: object) -> None:
    with pytest.raises(InvalidRequestError, match=name):
        GenerationConfig.of({}, **{name: value})


def test_unknown_parameter_lists_the_known_ones() -> None:
    with pytest.raises(InvalidRequestError, match=r"temprature.*temperature"):
        GenerationConfig.of({}, temprature=1)


def test_none_means_not_given() -> None:
    config = GenerationConfig.of({"top_p": 0.3}, top_p=None, temperature=0.5, stop="x")
    assert (config.top_p, config.temperature, config.stop) == (0.3, 0.5, ("x",))
