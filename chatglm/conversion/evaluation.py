"""What quantizing did to a model: it and its origin read one text side by side, a block of each in memory.

Shapes: N predicted positions of all samples, C model width, V vocabulary, T tokens of a sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from chatglm.checkpoints.validate import ValidationReport
from chatglm.conversion.blockwise import Activations, BlockwiseNetwork
from chatglm.conversion.report import Evaluation
from chatglm.conversion.rounding import relative
from chatglm.conversion.samples import Sample
from chatglm.errors import InvalidLogitsError
from chatglm.progress import Progress

MIN_TOKENS = 32
LARGEST_EXPONENT = 700.0  # of a float64; a network of random weights can be that surprised


def evaluate(
    before: ValidationReport,
    after: ValidationReport,
    samples: Sequence[Sample],
    device: torch.device,
    progress: Progress | None = None,
) -> Evaluation:
    """Compare a model and its quantized form in float32 on a text's answers; InvalidLogitsError for NaN or infinity."""
    losses = _LayerLosses()
    with BlockwiseNetwork(before, device) as old, BlockwiseNetwork(after, device) as new:
        num_parts = old.num_blocks + 1
        old_samples, new_samples = old.begin(samples), new.begin(samples)
        for number in range(old.num_blocks):
            with old.block(number) as old_block, new.block(number) as new_block:
                with losses.watching(f"{new.spec.layers}.{number}", old_block, new_block, new.packed_layers(number)):
                    old.advance(number, old_block, old_samples)
                new.advance(number, new_block, new_samples)
            if progress is not None:
                progress(number + 1, num_parts)
        logits = _Logits(torch.tensor([t for s in samples for t in s.input_ids[s.first + 1 :]], device=device))
        logits.read(old, _predicting(old_samples, samples), new, _predicting(new_samples, samples))
        if progress is not None:
            progress(num_parts, num_parts)
    return logits.evaluation(losses.relative())


def _predicting(activations: Sequence[Activations], samples: Sequence[Sample]) -> Tensor:
    """The positions from which a token is predicted, [N, C]."""
    parts = (a.x[0, sample.first : -1] for a, sample in zip(activations, samples, strict=True))
    return torch.cat(list(parts))


class _LayerLosses:
    """Errors of the layers that are quantized in the new network, over the inputs that they have in the old one."""

    def __init__(self) -> None:
        self._lost: dict[str, float] = {}
        self._whole: dict[str, float] = {}

    def relative(self) -> dict[str, float]:
        return {name: relative(lost, self._whole[name]) for name, lost in self._lost.items()}

    @contextmanager
    def watching(self, path: str, old_block: nn.Module, new_block: nn.Module, names: Iterable[str]) -> Iterator[None]:
        """Send whatever goes through these layers of `old_block` through those of `new_block` too, and compare."""
        with ExitStack() as hooks:
            for name in names:
                hook = self._hook(f"{path}.{name}.weight", new_block.get_submodule(name))
                hooks.enter_context(old_block.get_submodule(name).register_forward_hook(hook))
            yield

    def _hook(self, name: str, layer: nn.Module) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def compare(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            bias = cast(nn.Linear, layer).bias
            lost = float((layer(inputs[0]) - output).double().square().sum())
            self._lost[name] = self._lost.get(name, 0.0) + lost
            self._whole[name] = self._whole.get(name, 0.0) + float(
                (output if bias is None else output - bias).double().square().sum()
            )

        return compare


class _Logits:
    """Both networks' logits of the text's tokens, gathered over rows of the output heads."""

    def __init__(self, target_N: Tensor) -> None:
        self.target_N = target_N
        self.lost = self.whole = 0.0
        self.old, self.new = _Distribution(target_N), _Distribution(target_N)

    def read(self, old: BlockwiseNetwork, old_NC: Tensor, new: BlockwiseNetwork, new_NC: Tensor) -> None:
        """Compute all logits from what leaves the last blocks."""
        old_NC, new_NC = old.finish(old_NC), new.finish(new_NC)
        start = 0
        for old_rows, new_rows in zip(old.head_rows(), new.head_rows(), strict=True):
            old_logits, new_logits = old_NC @ old_rows.T, new_NC @ new_rows.T
            self.old.add(start, old_logits)
            self.new.add(start, new_logits)
            self.lost += float((new_logits - old_logits).double().square().sum())
            self.whole += float(old_logits.double().square().sum())
            start += len(old_rows)

    def evaluation(self, layers: Mapping[str, float]) -> Evaluation:
        return Evaluation(
            num_tokens=len(self.target_N),
            perplexity_before=self.old.perplexity(),
            perplexity_after=self.new.perplexity(),
            agreement=float((self.old.best_N == self.new.best_N).double().mean()),
            logit_error=relative(self.lost, self.whole),
            layers=layers,
        )


class _Distribution:
    """What is needed of the logits [N, V] of one network, which come some columns at a time."""

    def __init__(self, target_N: Tensor) -> None:
        self.target_N = target_N
        self.log_sum_N = torch.full_like(target_N, -math.inf, dtype=torch.float32)
        self.logit_N = torch.zeros_like(self.log_sum_N)
        self.top_N = self.log_sum_N.clone()
        self.best_N = torch.zeros_like(target_N)

    def add(self, start: int, logits: Tensor) -> None:
        self.log_sum_N = torch.logaddexp(self.log_sum_N, logits.logsumexp(dim=1))
        top_N, column_N = logits.max(dim=1)
        self.best_N = torch.where(top_N > self.top_N, start + column_N, self.best_N)
        self.top_N = torch.maximum(self.top_N, top_N)
        column_N = self.target_N - start
        is_here = (column_N >= 0) & (column_N < logits.shape[1])
        found_N = logits.gather(1, column_N.clamp(0, logits.shape[1] - 1)[:, None])[:, 0]
        self.logit_N = torch.where(is_here, found_N, self.logit_N)

    def perplexity(self) -> float:
        mean = float((self.log_sum_N - self.logit_N).double().mean())
        if not math.isfinite(mean):
            raise InvalidLogitsError("The logits for the evaluation text are not finite.", "Are the weights sound?")
        return math.exp(min(mean, LARGEST_EXPONENT))
