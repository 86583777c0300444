"""From the scores of many requests to the next id of each, where the scores lie: nothing is read by the host.

Knows: the rules of `sampling.py`, row by row with each row's own parameters; random numbers that follow from a
request's seed and its number of ids alone, so that they do not depend on company. Does not know steps or slots.

Ways to choose, the dearer the more general; a batch takes the cheapest that serves all its rows:

    BEST         the best id of every row
    CANDIDATES   of the best 64 ids: greedy rows, and those with 1 <= top_k <= 64 (ties of the 64th are not seen)
    ALL          any parameters; all scores are sorted

Shapes: B rows, V vocabulary, K candidates.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from chatglm.generation.config import GenerationConfig
from chatglm.kernels.triton import is_available

NUM_CANDIDATES = 64
# What a row with scores that are no numbers gets in the place of an id.
INVALID = -1

_MASK_64 = 2**64 - 1


class Choice(IntEnum):
    """How the ids of a batch are chosen."""

    BEST = 0
    CANDIDATES = 1
    ALL = 2


@dataclass(frozen=True)
class RowParameters:
    """Sampling of each row.

    Attributes:
        seeds: int64 [B].
        counts: int64 [B], ids that the answer has; together with the seed they give the random number.
        temperatures: float32 [B]; 0 = greedy.
        top_ks: int64 [B]; 0 = all.
        top_ps: float32 [B].
        end_ids: int64 [B], the id that ends the answer.
        may_end: bool [B]; None if every row may.
        penalties: float32 [B], for repetition; 1 = none.
        seen: bool [B, V], ids of prompt and answer so far; None if no row has a penalty.
    """

    seeds: Tensor
    counts: Tensor
    temperatures: Tensor
    top_ks: Tensor
    top_ps: Tensor
    end_ids: Tensor
    may_end: Tensor | None
    penalties: Tensor
    seen: Tensor | None = None


def choice_for(configs: Iterable[GenerationConfig]) -> Choice:
    """The cheapest way that serves all of them."""
    return max(map(_choice, configs), default=Choice.BEST)


def _choice(config: GenerationConfig) -> Choice:
    if config.is_greedy:
        return Choice.BEST
    return Choice.CANDIDATES if 0 < config.top_k <= NUM_CANDIDATES else Choice.ALL


def choose(scores_BV: Tensor, rows: RowParameters, choice: Choice) -> Tensor:
    """The next ids, int64 [B]; `INVALID` for a row that holds NaN or infinity.

    Args:
        scores_BV: of any float type.
        rows: parameters of each row.
        choice: a way that serves every row.
    """
    # NaN comes through as both.
    least_B, most_B = scores_BV.aminmax(dim=1)
    is_valid_B = least_B.isfinite() & most_B.isfinite()
    scores_BV = _without_end(_penalized(scores_BV.float(), rows), rows)
    best_B = scores_BV.argmax(dim=1)
    if choice is Choice.BEST:
        return torch.where(is_valid_B, best_B, INVALID)
    num_kept = scores_BV.shape[1]
    if choice is Choice.CANDIDATES:
        num_kept = min(NUM_CANDIDATES, num_kept)
    kept_BK, ids_BK = scores_BV.topk(num_kept, dim=1)
    drawn_B = ids_BK.gather(1, _draw(kept_BK, rows)[:, None])[:, 0]
    chosen_B = torch.where(rows.temperatures > 0, drawn_B, best_B)
    return torch.where(is_valid_B, chosen_B, INVALID)


def _penalized(scores_BV: Tensor, rows: RowParameters) -> Tensor:
    """Positive scores of ids already seen divided, negative ones multiplied."""
    if rows.seen is None:
        return scores_BV
    factors_B1 = rows.penalties[:, None]
    return torch.where(rows.seen, torch.where(scores_BV < 0, scores_BV * factors_B1, scores_BV / factors_B1), scores_BV)


def _without_end(scores_BV: Tensor, rows: RowParameters) -> Tensor:
    """The end made impossible where the answer is too short to end."""
    if rows.may_end is None:
        return scores_BV
    # An end that is no id of the vocabulary never comes, and nothing else may be forbidden for it.
    end_B1 = rows.end_ids.clamp(max=scores_BV.shape[1] - 1)[:, None]
    stays_B1 = rows.may_end[:, None] | (rows.end_ids[:, None] != end_B1)
    return scores_BV.scatter(1, end_B1, torch.where(stays_B1, scores_BV.gather(1, end_B1), -torch.inf))


def _draw(kept_BK: Tensor, rows: RowParameters) -> Tensor:
    """Which of the candidates [B, K], best first, is drawn; int64 [B]. See `sampling.candidates` for the rules."""
    if kept_BK.shape[1] <= NUM_CANDIDATES and is_available(kept_BK.device):
        from chatglm.kernels.triton.triton_sampling import operator

        return operator(kept_BK, rows.seeds, rows.counts, rows.temperatures, rows.top_ks, rows.top_ps)
    return _drawn(kept_BK, rows)


def _drawn(kept_BK: Tensor, rows: RowParameters) -> Tensor:
    """`_draw` in plain torch: the truth, and all there is for more candidates."""
    scores_BK = kept_BK / torch.where(rows.temperatures > 0, rows.temperatures, 1)[:, None]
    last_B1 = torch.where(rows.top_ks == 0, kept_BK.shape[1], rows.top_ks).clamp(max=kept_BK.shape[1])[:, None] - 1
    scores_BK = scores_BK.masked_fill(kept_BK < kept_BK.gather(1, last_B1), -torch.inf)
    probabilities_BK = scores_BK.softmax(dim=1)
    better_BK = probabilities_BK.cumsum(dim=1) - probabilities_BK
    is_kept_BK = (better_BK < rows.top_ps[:, None]) | (rows.top_ps[:, None] >= 1)
    is_kept_BK[:, 0] = True
    sums_BK = probabilities_BK.where(is_kept_BK, 0).cumsum(dim=1)
    # The first whose sum exceeds a random part of the whole; rounding may let none do so: then the last kept.
    bound_B1 = uniform(rows.seeds, rows.counts)[:, None] * sums_BK[:, -1:]
    num_below_B = (sums_BK <= bound_B1).sum(dim=1)
    last_kept_B = (is_kept_BK & (probabilities_BK > 0)).sum(dim=1) - 1
    # NaN keeps none; its row's id is not used, but must be one.
    return torch.minimum(num_below_B, last_kept_B).clamp(min=0)


def uniform(seeds_B: Tensor, counts_B: Tensor) -> Tensor:
    """Random numbers of 0 <= u < 1, float32 [B], each from its seed and count alone.

    SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014,
    https://doi.org/10.1145/2660193.2660195): output number `count` of the generator that starts at the mixed seed.
    """
    state = _mix(seeds_B) + (counts_B + 1) * _signed(0x9E3779B97F4A7C15)
    # 24 bits, as many as float32 has.
    return _shifted(_mix(state), 40).float() * 2.0**-24


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's mixing of 64 bits; products of int64 wrap around."""
    x = (x ^ _shifted(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shifted(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """x shifted right as an unsigned number."""
    return (x >> bits) & (_MASK_64 >> bits)


def _signed(number: int) -> int:
    """The int64 of the same bits."""
    return number - 2**64 if number >= 2**63 else number
