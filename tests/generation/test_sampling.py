"""The sampler: filters and penalties against upstream's, draws against their probabilities, rows independent."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from chatglm.errors import InvalidLogitsError
from chatglm.generation import sampling
from chatglm.generation.config import GenerationConfig
from chatglm.generation.sampling import (
    INVALID,
    NO_TOKEN,
    NUM_CANDIDATES,
    SamplingMode,
    SamplingRows,
    filter_candidates,
    forbid_end,
    mode_for,
    penalize_repetition,
    require_finite,
    sample,
    uniform,
)
from tests.golden.cases import facts, tensors

SETTINGS = facts("chatglm_v1/sampling", "sampling_filters")["settings"]
VOCABULARY, END = 150, 3
configs = st.builds(
    GenerationConfig,
    do_sample=st.booleans(),
    temperature=st.sampled_from([0.0, 0.3, 1.0, 5.0]),
    top_k=st.sampled_from([0, 1, 2, 10, 50, NUM_CANDIDATES, 100, 1000]),
    top_p=st.sampled_from([0.01, 0.5, 0.9, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.7]),
)


def random_logits(num_rows: int, seed: int) -> Tensor:
    return torch.randn(num_rows, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 3


def rows_of(configs: list[GenerationConfig], **changes: Any) -> SamplingRows:
    """Parameters of rows with these configs; `changes` replace some of them."""
    num_rows = len(configs)
    columns = {
        "seeds": torch.arange(num_rows),
        "counts": torch.zeros(num_rows, dtype=torch.int64),
        "temperatures": torch.tensor([0.0 if one.is_greedy else one.temperature for one in configs]),
        "top_ks": torch.tensor([one.top_k for one in configs]),
        "top_ps": torch.tensor([float(one.top_p) for one in configs]),
        "eos_ids": torch.tensor([[END, NO_TOKEN]] * num_rows),
        "eos_allowed": torch.ones(num_rows, dtype=torch.bool),
        "penalties": torch.tensor([float(one.repetition_penalty) for one in configs]),
    }
    return SamplingRows(**columns | changes)


def candidates(logits_V: Tensor, config: GenerationConfig) -> tuple[Tensor, Tensor]:
    """Scaled logits and tokens that survive, best first."""
    kept_1K, ids_1K = logits_V[None].float().sort(descending=True, stable=True)
    probabilities, is_kept = filter_candidates(kept_1K, rows_of([config]))
    survives = is_kept[0] & (probabilities[0] > 0)
    return kept_1K[0][survives] / config.temperature, ids_1K[0][survives]


def reference(logits_V: Tensor, config: GenerationConfig) -> Tensor:
    """Probabilities [V] by the rules, one token after the other."""
    scaled = (logits_V.double() / config.temperature).tolist()
    order = sorted(range(len(scaled)), key=lambda token: -scaled[token])
    if 0 < config.top_k < len(order):
        order = [token for token in order if scaled[token] >= scaled[order[config.top_k - 1]]]
    weights = np.exp([scaled[token] - scaled[order[0]] for token in order])
    better = np.concatenate(([0.0], np.cumsum(weights / weights.sum())[:-1]))
    is_kept = (better < config.top_p) | (config.top_p >= 1)
    is_kept[0] = True
    result = np.zeros(len(scaled))
    result[order] = np.where(is_kept, weights, 0) / weights[is_kept].sum()
    return torch.from_numpy(result).float()


@pytest.mark.parametrize("number", range(len(SETTINGS)))
def test_filters(number: int) -> None:
    """Rows 1 and 2 hold ties, where only the kept values are defined, not which of the equal tokens."""
    golden = tensors("chatglm_v1/sampling", "sampling_filters")
    setting = SETTINGS[number]
    config = GenerationConfig(
        temperature=setting.get("temperature", 1.0), top_p=setting.get("top_p", 1.0), top_k=setting["effective_top_k"]
    )
    for row, logits in enumerate(golden["scores"]):
        kept, ids = candidates(logits, config)
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
    num_rows = len(golden["scores"])
    seen = torch.zeros_like(golden["scores"], dtype=torch.bool).scatter(1, golden["input_ids"], True)
    rows = rows_of([GenerationConfig(repetition_penalty=1.2)] * num_rows, seen=seen)
    torch.testing.assert_close(penalize_repetition(golden["scores"], rows), golden["repetition_1.2"])


def test_minimum_length() -> None:
    golden = tensors("chatglm_v1/sampling", "penalties")
    num_rows = len(golden["scores"])
    forbidden = {"eos_ids": torch.full((num_rows, 1), 4), "eos_allowed": torch.zeros(num_rows, dtype=torch.bool)}
    rows = rows_of([GenerationConfig()] * num_rows, **forbidden)
    assert torch.equal(forbid_end(golden["scores"], rows), golden["min_length_10_eos_4"])


def test_every_end_token_of_a_row_is_forbidden_and_no_other() -> None:
    logits = random_logits(2, 0)
    rows = rows_of(
        [GenerationConfig()] * 2,
        eos_ids=torch.tensor([[5, 7, NO_TOKEN], [9, NO_TOKEN, NO_TOKEN]]),
        eos_allowed=torch.tensor([False, True]),
    )
    changed = (forbid_end(logits, rows) != logits).nonzero().tolist()
    assert changed == [[0, 5], [0, 7]]


@pytest.mark.parametrize("kind", ["clean", "nan", "inf", "ninf"])
def test_invalid_logits_are_refused_not_hidden(kind: str) -> None:
    """CHAT-08: upstream turns exactly these logits into token 5 for every row; here they end the request."""
    golden = tensors("chatglm_v1/sampling", "invalid_scores")
    was_replaced = not torch.equal(golden[f"{kind}.in"], golden[f"{kind}.out"])
    logits = golden[f"{kind}.in"]
    sampled = sample(logits, rows_of([GenerationConfig()] * len(logits)), SamplingMode.FULL)
    assert bool((sampled == INVALID).any()) == was_replaced
    if was_replaced:
        with pytest.raises(InvalidLogitsError, match="bf16"):
            require_finite(logits)
    else:
        require_finite(logits)


@given(
    logits=st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=40),
    temperature=st.floats(0.05, 3),
    top_k=st.integers(0, 45),
    top_p=st.floats(0, 1),
)
@settings(max_examples=60, deadline=None)
def test_candidates_agree_with_the_library(logits: list[float], temperature: float, top_k: int, top_p: float) -> None:
    """The best token always survives; without ties and off the cut, the kept set is the one of transformers."""
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    row = torch.tensor(logits)
    scaled = row / temperature  # neighbours may meet
    _kept, ids = candidates(row, GenerationConfig(temperature=temperature, top_k=top_k, top_p=top_p))
    assert scaled[ids[0]] == scaled.max()
    if len(set(scaled.tolist())) < len(logits):
        return
    theirs = TemperatureLogitsWarper(temperature)(None, row[None])
    if top_k:
        theirs = TopKLogitsWarper(top_k)(None, theirs)
    probabilities = theirs[0].softmax(0).sort(descending=True).values
    better = probabilities.cumsum(0) - probabilities
    if 0 < top_p < 1 and (better - top_p).abs().min() > 1e-5:
        theirs = TopPLogitsWarper(top_p)(None, theirs)
        likely = (theirs[0].softmax(0) > 0).nonzero()[:, 0]
        assert set(ids.tolist()) == set(likely.tolist())


@settings(deadline=None, max_examples=60)
@given(
    config=configs, seed=st.integers(0, 10**6), eos_allowed=st.booleans(), seen=st.sets(st.integers(0, 149), max_size=9)
)
def test_draws_follow_the_probabilities(config: GenerationConfig, seed: int, eos_allowed: bool, seen: set[int]) -> None:
    """All random numbers on a fine grid: each token comes as often as its probability says, and no other ever."""
    num_draws = 2000
    logits_V = random_logits(1, seed)[0]
    seen_V = torch.zeros(VOCABULARY, dtype=torch.bool)
    seen_V[list(seen)] = True
    rows = rows_of(
        [config] * num_draws,
        eos_allowed=torch.full((num_draws,), eos_allowed),
        seen=seen_V.expand(num_draws, -1) if config.repetition_penalty != 1 else None,
    )
    numbers = (torch.arange(num_draws) + 0.5) / num_draws
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(sampling, "uniform", lambda seeds, counts: numbers)
        sampled = sample(logits_V.expand(num_draws, -1), rows, mode_for([config]))
    penalized = torch.where(logits_V < 0, logits_V * config.repetition_penalty, logits_V / config.repetition_penalty)
    expected = torch.where(seen_V, penalized, logits_V)
    if not eos_allowed:
        expected[END] = -torch.inf
    if config.is_greedy:
        assert sampled.unique().tolist() == [int(expected.argmax())]
        return
    probabilities = reference(expected, config)
    frequencies = torch.bincount(sampled, minlength=VOCABULARY) / num_draws
    assert not frequencies[probabilities == 0].any()
    torch.testing.assert_close(frequencies, probabilities, atol=1.01 / num_draws, rtol=0)


@settings(deadline=None, max_examples=60)
@given(st.lists(configs, min_size=1, max_size=6), st.integers(0, 10**6))
def test_a_row_does_not_depend_on_the_others(configs: list[GenerationConfig], seed: int) -> None:
    """Alone, in a batch, and in a batch that needs a dearer mode."""
    logits, rows = random_logits(len(configs), seed), rows_of(configs)
    together = sample(logits, rows, mode_for(configs))
    assert torch.equal(together, sample(logits, rows, SamplingMode.FULL))
    for number, config in enumerate(configs):
        row = rows_of([config], seeds=rows.seeds[number : number + 1])
        assert sample(logits[number : number + 1], row, mode_for([config])) == together[number]


@pytest.mark.parametrize(
    "config",
    [
        GenerationConfig(temperature=0),
        GenerationConfig(do_sample=False),
        GenerationConfig(top_k=1),
        GenerationConfig(temperature=1e-40),
        GenerationConfig(temperature=1e-320),
    ],
)
def test_greedy(config: GenerationConfig) -> None:
    """Divided by a temperature next to nothing the logits would be infinite."""
    logits = random_logits(1, 0)
    assert mode_for([config]) is SamplingMode.GREEDY
    for mode in SamplingMode:
        assert int(sample(logits, rows_of([config]), mode)) == int(logits.argmax())


def test_ties_of_the_last_candidate_are_kept() -> None:
    logits = torch.zeros(1, 10)
    config = GenerationConfig(top_k=2, top_p=1.0, temperature=1.0)
    drawn = {int(sample(logits, rows_of([config], counts=torch.tensor([n])), SamplingMode.TOP_K)) for n in range(300)}
    assert drawn == set(range(10))


@pytest.mark.parametrize("mode", list(SamplingMode))
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_invalid_logits_mark_their_row_only(mode: SamplingMode, bad: float) -> None:
    logits = random_logits(3, 0)
    logits[1, 7] = bad
    is_greedy = mode is SamplingMode.GREEDY
    config = GenerationConfig(do_sample=not is_greedy, top_k=5 if mode is SamplingMode.TOP_K else 0)
    sampled = sample(logits, rows_of([config] * 3), mode)
    assert (sampled == INVALID).tolist() == [False, True, False]


def test_random_numbers_are_those_of_splitmix64() -> None:
    """Against the same formulas in numpy's unsigned numbers."""

    def mix(x: Any) -> Any:
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))

    rng = np.random.default_rng(0)
    seeds, counts = rng.integers(0, 2**63 - 1, 1000), rng.integers(0, 3000, 1000)
    with np.errstate(over="ignore"):
        state = mix(seeds.astype(np.uint64)) + (counts.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        expected = (mix(state) >> np.uint64(40)).astype(np.float64) / 2**24
    assert uniform(torch.from_numpy(seeds), torch.from_numpy(counts)).double().numpy() == pytest.approx(expected, abs=0)


def test_random_numbers_are_spread_evenly() -> None:
    """Neighbouring seeds and counts, as users give them: chi-squared of 100 bins within six deviations."""
    seeds = torch.arange(100).repeat_interleave(100)
    numbers = uniform(seeds, torch.arange(100).repeat(100))
    assert float(numbers.min()) >= 0
    assert float(numbers.max()) < 1
    for part in (numbers, numbers.view(100, 100).diff(dim=1).flatten() % 1, numbers.view(100, 100).diff(dim=0) % 1):
        counts = torch.histc(part.flatten(), bins=100, min=0, max=1)
        expected = part.numel() / 100
        chi_squared = float(((counts - expected) ** 2 / expected).sum())
        assert abs(chi_squared - 99) < 6 * (2 * 99) ** 0.5
