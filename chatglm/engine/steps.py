"""Decode steps on a device: their tensors, their graphs, and the sampled tokens on their way to the host."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from chatglm.engine.block_manager import blocks_for
from chatglm.engine.graphs import Graphs
from chatglm.engine.slots import LENGTH, PADDING_SLOT, TOKEN, USES_ADAPTER, Slots
from chatglm.generation.sampling import SamplingMode, sample
from chatglm.model_spec import ModelSpec
from chatglm.nn.transfer import to_device

logger = logging.getLogger(__name__)

BATCH_SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)


class PagedModel(Protocol):
    """What a family offers for captured decode steps over a paged cache; `num_position_rows` is R."""

    @property
    def device(self) -> torch.device: ...

    @property
    def lies_on_one_gpu(self) -> bool: ...

    @property
    def num_position_rows(self) -> int: ...

    def new_pages(self, num_pages: int) -> Any: ...

    def can_step(self, prompt: Tensor, layout: Any) -> bool:
        """Whether `fill_pages` takes all but the last id of such a prompt."""
        ...

    def answer_positions(self, layout: Any, column: int) -> Tensor:
        """Positions of a column of the answer, and what each grows by from step to step: int64 [2, R], on the CPU."""
        ...

    def fill_pages(
        self,
        prompts: Sequence[Tensor],
        layouts: Sequence[Any],
        pages: Any,
        tables: Sequence[Tensor],
        uses_adapter: Sequence[bool],
    ) -> None: ...

    def step(
        self,
        ids_B: Tensor,
        positions_BR: Tensor,
        pages: Any,
        table_BM: Tensor,
        lengths_B: Tensor,
        uses_adapter_B: Tensor,
    ) -> Tensor: ...


@dataclass(frozen=True)
class StepKind:
    """A step that needs a graph of its own, with `size` rows; a graph with `SamplingMode.FULL` ends at the logits."""

    size: int
    mode: SamplingMode
    has_penalty: bool = False
    eos_may_be_forbidden: bool = False

    @property
    def graph(self) -> StepKind:
        """The kind whose graph serves: sorting all logits is for few requests, and is done after one."""
        return StepKind(self.size, SamplingMode.FULL) if self.mode is SamplingMode.FULL else self


@dataclass(frozen=True)
class PendingTokens:
    """Tokens of a step that the device works on."""

    ids: Tensor
    is_done: torch.cuda.Event | None

    def read(self) -> list[int]:
        if self.is_done is not None:
            self.is_done.synchronize()
        return self.ids.tolist()


class Steps:
    """Tensors and graphs of a network's steps, in the thread that calls it; `sizes` of batches ascend."""

    def __init__(
        self, model: PagedModel, spec: ModelSpec, num_pages: int, num_positions: int, max_running: int
    ) -> None:
        """Allocate all that graphs point to: `num_pages` of all requests together, at most `num_positions` of one."""
        self._model = model
        self._device = model.device
        self.pages = model.new_pages(num_pages)
        context = blocks_for(num_positions)
        num_eos = max(1, len(spec.eos_ids))
        self.slots = Slots(max_running, context, model.num_position_rows, num_eos, spec.vocab_size, self._device)
        self.sizes = [size for size in BATCH_SIZES if size < max_running] + [max_running]
        self._rows = {size: torch.zeros(size, dtype=torch.int64, device=self._device) for size in self.sizes}
        self._sampled = {size: torch.zeros(size, dtype=torch.int64, device=self._device) for size in self.sizes}
        # Slots that stand in the rows, and the logits of steps whose tokens are sampled behind the graph, by size.
        self._slots_in_rows: dict[int, list[int]] = {}
        self._logits_of: dict[int, Tensor] = {}
        self._graphs = Graphs(self._device)

    def current_device(self) -> AbstractContextManager[object]:
        """Streams, events and graphs belong to the current device, whatever their tensors say."""
        return torch.cuda.device(self._device) if self._device.type == "cuda" else nullcontext()

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Capture the usual steps of every size, the largest first; those there is no memory for are left for later."""
        with self.current_device():
            for size in reversed(self.sizes):
                try:
                    for mode in (SamplingMode.GREEDY, SamplingMode.TOP_K):
                        self._prepare(StepKind(size, mode))
                except torch.OutOfMemoryError:
                    logger.warning("There is no memory to prepare steps of %d requests at once.", size)

    @torch.inference_mode()
    def launch(self, slots: Sequence[int], kind: StepKind) -> PendingTokens:
        """Start a step with one slot for each row, no more than the largest size; it has at least `kind.size` rows."""
        kind = replace(kind, size=next(size for size in self.sizes if size >= len(slots)))
        self._prepare(kind)
        self._set_rows(list(slots), kind.size)
        self._graphs.replay(kind.graph, self._step_of(kind.graph))
        if kind.mode is SamplingMode.FULL:
            slots_B = self._rows[kind.size]
            self._sample(slots_B, self.slots.numbers_of(slots_B)[0], self._logits_of[kind.size], kind)
        return self._pending(len(slots), kind.size)

    @torch.inference_mode()
    def logits(self, slot: int) -> Tensor:
        """Logits [1, V] that the next step of a slot samples from; the slot does not advance."""
        return self._logits(*self.slots.numbers_of(torch.tensor([slot], device=self._device)))

    def _prepare(self, kind: StepKind) -> None:
        if self._graphs.needs(kind.graph) or (kind.mode is SamplingMode.FULL and kind.size not in self._logits_of):
            slots_B = self._rows[kind.size].zero_()
            self._slots_in_rows.pop(kind.size, None)
            if kind.mode is SamplingMode.FULL:
                self._logits_of[kind.size] = self._logits(*self.slots.numbers_of(slots_B)).clone()
            if self._graphs.needs(kind.graph):
                self._graphs.capture(kind.graph, self._step_of(kind.graph))

    def _set_rows(self, slots: list[int], size: int) -> None:
        if self._slots_in_rows.get(size) != slots:
            filled = torch.tensor(slots + [PADDING_SLOT] * (size - len(slots)))
            self._rows[size].copy_(to_device(filled, self._device))
            self._slots_in_rows[size] = slots

    def _step_of(self, kind: StepKind) -> Callable[[], None]:
        return lambda: self.step(self._rows[kind.size], kind)

    def step(self, slots_B: Tensor, kind: StepKind) -> None:
        """One token for each row, from where the last step left off. This is what a graph holds."""
        numbers_BC, table_BM = self.slots.numbers_of(slots_B)
        logits_BV = self._logits(numbers_BC, table_BM)
        if kind.mode is SamplingMode.FULL:
            self._logits_of[kind.size].copy_(logits_BV)
        else:
            self._sample(slots_B, numbers_BC, logits_BV, kind)

    def _sample(self, slots_B: Tensor, numbers_BC: Tensor, logits_BV: Tensor, kind: StepKind) -> None:
        has_penalty = kind.has_penalty
        rows = self.slots.sampling_rows(
            slots_B, numbers_BC, has_penalty=has_penalty, eos_may_be_forbidden=kind.eos_may_be_forbidden
        )
        sampled_B = sample(logits_BV, rows, kind.mode)
        self.slots.advance(slots_B, numbers_BC, sampled_B, has_penalty=has_penalty)
        self._sampled[kind.size].copy_(sampled_B)

    def _logits(self, numbers_BC: Tensor, table_BM: Tensor) -> Tensor:
        return self._model.step(
            numbers_BC[:, TOKEN],
            self.slots.positions(numbers_BC),
            self.pages,
            table_BM,
            (numbers_BC[:, LENGTH] + 1).int(),
            numbers_BC[:, USES_ADAPTER].bool(),
        )

    def _pending(self, num_rows: int, size: int) -> PendingTokens:
        chosen = self._sampled[size][:num_rows]
        if self._device.type != "cuda":
            return PendingTokens(chosen.to("cpu", copy=True), None)
        ids = torch.empty(num_rows, dtype=torch.int64, pin_memory=True)
        ids.copy_(chosen, non_blocking=True)
        is_done = torch.cuda.Event()
        is_done.record()
        return PendingTokens(ids, is_done)
