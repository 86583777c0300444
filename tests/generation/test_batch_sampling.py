"""Ids chosen row by row on the device follow the rules of one request: same candidates, same probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from chatglm.generation import batch_sampling
from chatglm.generation.batch_sampling import (
    INVALID,
    NUM_CANDIDATES,
    Choice,
    RowParameters,
    choice_for,
    choose,
    uniform,
)
from chatglm.generation.config import GenerationConfig
from chatglm.generation.sampling import candidates, forbid, penalize_repetition

VOCABULARY, END = 150, 3
configs = st.builds(
    GenerationConfig,
    do_sample=st.booleans(),
    temperature=st.sampled_from([0.0, 0.3, 1.0, 5.0]),
    top_k=st.sampled_from([0, 1, 2, 10, 50, NUM_CANDIDATES, 100, 1000]),
    top_p=st.sampled_from([0.01, 0.5, 0.9, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.7]),
)


def random_scores(num_rows: int, seed: int) -> Tensor:
    return torch.randn(num_rows, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 3


def rows_of(configs: list[GenerationConfig], **changes: Any) -> RowParameters:
    """Parameters of rows with these configs; `changes` replace some of them."""
    num_rows = len(configs)
    columns = {
        "seeds": torch.arange(num_rows),
        "counts": torch.zeros(num_rows, dtype=torch.int64),
        "temperatures": torch.tensor([0.0 if one.is_greedy else one.temperature for one in configs]),
        "top_ks": torch.tensor([one.top_k for one in configs]),
        "top_ps": torch.tensor([one.top_p for one in configs]),
        "end_ids": torch.full((num_rows,), END),
        "may_end": torch.ones(num_rows, dtype=torch.bool),
        "penalties": torch.tensor([one.repetition_penalty for one in configs]),
    }
    return RowParameters(**columns | changes)


def every_draw(monkeypatch: pytest.MonkeyPatch, num_draws: int) -> None:
    """Let the random numbers of rows be all of 1/2n, 3/2n, ... instead of hashed ones."""
    numbers = (torch.arange(num_draws) + 0.5) / num_draws
    monkeypatch.setattr(batch_sampling, "uniform", lambda seeds, counts: numbers)


@settings(deadline=None, max_examples=60)
@given(config=configs, seed=st.integers(0, 10**6), may_end=st.booleans(), seen=st.sets(st.integers(0, 149), max_size=9))
def test_draws_are_spread_as_for_one_request(
    config: GenerationConfig, seed: int, may_end: bool, seen: set[int]
) -> None:
    """All random numbers on a fine grid: each id comes as often as its probability says, and no other ever."""
    num_draws = 2000
    scores_V = random_scores(1, seed)[0]
    seen_V = torch.zeros(VOCABULARY, dtype=torch.bool)
    seen_V[list(seen)] = True
    rows = rows_of(
        [config] * num_draws,
        may_end=torch.full((num_draws,), may_end),
        seen=seen_V.expand(num_draws, -1) if config.repetition_penalty != 1 else None,
    )
    with pytest.MonkeyPatch.context() as monkeypatch:
        every_draw(monkeypatch, num_draws)
        chosen = choose(scores_V.expand(num_draws, -1), rows, choice_for([config]))
    expected = penalize_repetition(scores_V, sorted(seen), config.repetition_penalty)
    if not may_end:
        expected = forbid(expected, END)
    if config.is_greedy:
        assert chosen.unique().tolist() == [int(expected.argmax())]
        return
    kept, ids = candidates(expected, config)
    probabilities = torch.zeros(VOCABULARY).index_put((ids,), kept.softmax(dim=0))
    frequencies = torch.bincount(chosen, minlength=VOCABULARY) / num_draws
    assert not frequencies[probabilities == 0].any()
    torch.testing.assert_close(frequencies, probabilities, atol=1.01 / num_draws, rtol=0)


@settings(deadline=None, max_examples=60)
@given(st.lists(configs, min_size=1, max_size=6), st.integers(0, 10**6))
def test_a_row_does_not_depend_on_the_others(configs: list[GenerationConfig], seed: int) -> None:
    """Alone, in a batch, and in a batch that needs a dearer way of choosing."""
    scores, rows = random_scores(len(configs), seed), rows_of(configs)
    together = choose(scores, rows, choice_for(configs))
    assert torch.equal(together, choose(scores, rows, Choice.ALL))
    for number, config in enumerate(configs):
        row = rows_of([config], seeds=rows.seeds[number : number + 1])
        assert choose(scores[number : number + 1], row, choice_for([config])) == together[number]


def test_ties_of_the_last_candidate_are_kept() -> None:
    scores = torch.zeros(1, 10)
    config = GenerationConfig(top_k=2, top_p=1.0, temperature=1.0)
    drawn = {int(choose(scores, rows_of([config], counts=torch.tensor([n])), Choice.CANDIDATES)) for n in range(300)}
    assert drawn == set(range(10))


@pytest.mark.parametrize("choice", list(Choice))
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_scores_that_are_no_numbers_mark_their_row_only(choice: Choice, bad: float) -> None:
    scores = random_scores(3, 0)
    scores[1, 7] = bad
    config = GenerationConfig(do_sample=choice is not Choice.BEST, top_k=5 if choice is Choice.CANDIDATES else 0)
    chosen = choose(scores, rows_of([config] * 3), choice)
    assert (chosen == INVALID).tolist() == [False, True, False]


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
