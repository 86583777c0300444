"""From scores to the next token id.

Knows: repetition penalty, temperature, top-k, top-p, drawing. Does not know models or when to stop.
The order is upstream's: penalty and minimum length, then temperature, then top-k, then top-p.
Shapes: V vocabulary, K kept candidates.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from chatglm.errors import InvalidLogitsError
from chatglm.generation.config import GenerationConfig


def require_finite(scores: Tensor) -> None:
    """Refuse scores that hold NaN or infinity.

    Upstream answers them with token 5 ("▁") for the whole batch, which hides a broken model behind blanks.

    Raises:
        InvalidLogitsError: with the likely causes.
    """
    if not bool(torch.isfinite(scores).all()):
        raise invalid_logits()


def invalid_logits() -> InvalidLogitsError:
    """The error about scores that are no numbers, with the likely causes."""
    return InvalidLogitsError(
        "The model produced NaN or infinite scores.",
        "Likely causes: float16 overflow (try --dtype bf16 or fp32), damaged weights "
        "(run `python -m chatglm doctor`), or a fine-tuned prefix that diverged.",
    )


class RequireFinite:
    """`require_finite` in the form of a transformers logits processor."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        require_finite(scores)
        return scores


def penalize_repetition(scores_V: Tensor, seen_ids: Sequence[int] | Tensor, penalty: float) -> Tensor:
    """Divide positive and multiply negative scores of ids already seen; returns a new tensor [V]."""
    if penalty == 1.0 or len(seen_ids) == 0:
        return scores_V
    ids = torch.as_tensor(seen_ids, device=scores_V.device).unique()
    seen = scores_V[ids]
    return scores_V.index_copy(0, ids, torch.where(seen < 0, seen * penalty, seen / penalty))


def forbid(scores_V: Tensor, token_id: int) -> Tensor:
    """Make an id impossible; returns a new tensor [V]. An id that is not in the vocabulary is so already."""
    if not 0 <= token_id < scores_V.shape[0]:
        return scores_V
    return scores_V.index_fill(0, torch.tensor([token_id], device=scores_V.device), -torch.inf)


def candidates(scores_V: Tensor, config: GenerationConfig) -> tuple[Tensor, Tensor]:
    """Scores and ids [K] that survive temperature, top-k and top-p, best first; at least one.

    Top-k keeps ties of the k-th score. Top-p keeps a token while the probability of all better ones is below top_p.
    """
    scores_V = scores_V.float() / config.temperature
    ids = torch.arange(scores_V.shape[0], device=scores_V.device)
    if 0 < config.top_k < scores_V.shape[0]:
        ids = (scores_V >= scores_V.topk(config.top_k).values[-1]).nonzero()[:, 0]
    kept, order = scores_V[ids].sort(descending=True, stable=True)
    ids = ids[order]
    if config.top_p < 1:
        probabilities = kept.softmax(dim=0)
        better = probabilities.cumsum(dim=0) - probabilities
        num_kept = max(1, int((better < config.top_p).sum()))
        kept, ids = kept[:num_kept], ids[:num_kept]
    return kept, ids


def pick(scores_V: Tensor, config: GenerationConfig, generator: torch.Generator | None) -> int:
    """The next token id from finite scores [V]; drawn with `generator` unless the config is greedy."""
    if config.is_greedy:
        return int(scores_V.argmax())
    kept, ids = candidates(scores_V, config)
    return int(ids[torch.multinomial(kept.softmax(dim=0), 1, generator=generator)])


def new_generator(seed: int | None, device: torch.device) -> torch.Generator | None:
    """The random source of one request: its own when it has a seed, torch's global one otherwise."""
    if seed is None:
        return None
    return torch.Generator(device=device).manual_seed(seed % 2**64)
