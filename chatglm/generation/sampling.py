"""From logits to the next token of each row, in upstream's order: repetition penalty and minimum length, temperature,
top-k, top-p, draw. The host reads nothing. A row's random number depends on its seed and token count alone.
Shapes: B rows, V vocabulary, K sorted candidates, E end tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from chatglm.errors import InvalidLogitsError
from chatglm.generation.config import GenerationConfig
from chatglm.kernels.triton import is_available

NUM_CANDIDATES = 64
# The token of a row whose logits hold NaN or infinity.
INVALID = -1
# More than any vocabulary has: an end token that no row can sample.
NO_TOKEN = 2**31

_MASK_64 = 2**64 - 1

# transformers' logits processors: token ids [1, n] and logits [1, V] -> logits [1, V].
LogitsProcessor = Callable[[Tensor, Tensor], Tensor]


class SamplingMode(IntEnum):
    """GREEDY: the best token. TOP_K: the best 64 (top_k 1..64, without ties of the 64th). FULL: all logits, sorted."""

    GREEDY = 0
    TOP_K = 1
    FULL = 2


@dataclass(frozen=True)
class SamplingRows:
    """Sampling parameters of each row; `counts` are tokens of the answer so far, `seen` those of prompt and answer.

    int64 [B]: seeds, counts, top_ks (0 = all). float32 [B]: temperatures (0 = greedy), top_ps, penalties (1 = none).
    int64 [B, E]: eos_ids (`NO_TOKEN` = none). bool [B]: eos_allowed (None = all). bool [B, V]: seen (or None).
    """

    seeds: Tensor
    counts: Tensor
    temperatures: Tensor
    top_ks: Tensor
    top_ps: Tensor
    eos_ids: Tensor
    eos_allowed: Tensor | None
    penalties: Tensor
    seen: Tensor | None = None


def mode_for(configs: Iterable[GenerationConfig]) -> SamplingMode:
    """The cheapest mode that serves all of them."""
    return max(map(_mode, configs), default=SamplingMode.GREEDY)


def _mode(config: GenerationConfig) -> SamplingMode:
    if config.is_greedy:
        return SamplingMode.GREEDY
    return SamplingMode.TOP_K if 0 < config.top_k <= NUM_CANDIDATES else SamplingMode.FULL


def sample(logits_BV: Tensor, rows: SamplingRows, mode: SamplingMode) -> Tensor:
    """The next tokens, int64 [B]; `INVALID` for a row that holds NaN or infinity. `mode` must serve every row."""
    # NaN comes through both; on a CPU the two passes take a tenth of `aminmax`.
    is_valid_B = logits_BV.amin(dim=1).isfinite() & logits_BV.amax(dim=1).isfinite()
    logits_BV = forbid_end(penalize_repetition(logits_BV.float(), rows), rows)
    best_B = logits_BV.argmax(dim=1)
    if mode is SamplingMode.GREEDY:
        return torch.where(is_valid_B, best_B, INVALID)
    num_kept = logits_BV.shape[1]
    if mode is SamplingMode.TOP_K:
        num_kept = min(NUM_CANDIDATES, num_kept)
    kept_BK, ids_BK = logits_BV.topk(num_kept, dim=1)
    drawn_B = ids_BK.gather(1, _draw(kept_BK, rows)[:, None])[:, 0]
    sampled_B = torch.where(rows.temperatures > 0, drawn_B, best_B)
    return torch.where(is_valid_B, sampled_B, INVALID)


def penalize_repetition(logits_BV: Tensor, rows: SamplingRows) -> Tensor:
    """Positive logits of tokens already seen divided by the row's penalty, negative ones multiplied."""
    if rows.seen is None:
        return logits_BV
    factors_B1 = rows.penalties[:, None]
    return torch.where(rows.seen, torch.where(logits_BV < 0, logits_BV * factors_B1, logits_BV / factors_B1), logits_BV)


def forbid_end(logits_BV: Tensor, rows: SamplingRows) -> Tensor:
    """The end tokens made impossible where the answer is too short to end."""
    if rows.eos_allowed is None:
        return logits_BV
    # An end token outside the vocabulary never comes, and nothing else may be forbidden for it.
    eos_BE = rows.eos_ids.clamp(max=logits_BV.shape[1] - 1)
    stays_BE = rows.eos_allowed[:, None] | (rows.eos_ids != eos_BE)
    return logits_BV.scatter_reduce(
        1, eos_BE, torch.where(stays_BE, torch.inf, -torch.inf), reduce="amin", include_self=True
    )


def _draw(kept_BK: Tensor, rows: SamplingRows) -> Tensor:
    """Which of the candidates [B, K], best first, is drawn; int64 [B]."""
    if kept_BK.shape[1] <= NUM_CANDIDATES and is_available(kept_BK.device):
        from chatglm.kernels.triton.triton_sampling import operator

        return operator(kept_BK, rows.seeds, rows.counts, rows.temperatures, rows.top_ks, rows.top_ps)
    return draw_reference(kept_BK, rows)


def draw_reference(kept_BK: Tensor, rows: SamplingRows) -> Tensor:
    """`_draw` in plain torch: the reference of the kernel, and all there is for more candidates."""
    probabilities_BK, is_kept_BK = filter_candidates(kept_BK, rows)
    sums_BK = probabilities_BK.where(is_kept_BK, 0).cumsum(dim=1)
    # The first whose sum exceeds a random part of the whole; rounding may let none do so: then the last kept.
    bound_B1 = uniform(rows.seeds, rows.counts)[:, None] * sums_BK[:, -1:]
    num_below_B = (sums_BK <= bound_B1).sum(dim=1)
    last_kept_B = (is_kept_BK & (probabilities_BK > 0)).sum(dim=1) - 1
    # NaN keeps none; its row's token is not used, but must be one.
    return torch.minimum(num_below_B, last_kept_B).clamp(min=0)


def filter_candidates(kept_BK: Tensor, rows: SamplingRows) -> tuple[Tensor, Tensor]:
    """Probabilities after temperature and top-k, and which survive top-p; at least the best. Logits are best first.
    Top-k keeps ties of the k-th logit. Top-p keeps a token while the probability of all better ones is below it.
    """
    logits_BK = kept_BK / torch.where(rows.temperatures > 0, rows.temperatures, 1)[:, None]
    last_B1 = torch.where(rows.top_ks == 0, kept_BK.shape[1], rows.top_ks).clamp(max=kept_BK.shape[1])[:, None] - 1
    logits_BK = logits_BK.masked_fill(kept_BK < kept_BK.gather(1, last_B1), -torch.inf)
    probabilities_BK = logits_BK.softmax(dim=1)
    better_BK = probabilities_BK.cumsum(dim=1) - probabilities_BK
    is_kept_BK = (better_BK < rows.top_ps[:, None]) | (rows.top_ps[:, None] >= 1)
    is_kept_BK[:, 0] = True
    return probabilities_BK, is_kept_BK


def uniform(seeds_B: Tensor, counts_B: Tensor) -> Tensor:
    """Random numbers 0 <= u < 1, float32 [B]: SplitMix64's output number `count` from the mixed seed (Steele, Lea and
    Flood, "Fast splittable pseudorandom number generators", 2014, https://doi.org/10.1145/2660193.2660195).
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
    return number - 2**64 if number >= 2**63 else number


def invalid_logits() -> InvalidLogitsError:
    """The error about NaN and infinity, which upstream hides behind token 5 ("▁"), with the likely causes."""
    return InvalidLogitsError(
        "The model produced NaN or infinite logits.",
        "Likely causes: float16 overflow (try --dtype bf16 or fp32), damaged weights "
        "(run `python -m chatglm doctor`), or a fine-tuned prefix that diverged.",
    )


def require_finite(logits: Tensor) -> None:
    """Raise `invalid_logits` for NaN and infinity."""
    if not bool(torch.isfinite(logits).all()):
        raise invalid_logits()
