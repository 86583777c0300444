"""Steps of a network on its device: their tensors, their graphs, and the ids on their way to the host.

Knows: which sizes batches have, what a step of each kind reads and writes, that a step leaves ids where the next one
finds them. Does not know requests, or who holds which slot and pages.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from chatglm.engine.blocks import blocks_for
from chatglm.engine.graphs import Graphs
from chatglm.engine.runner import BatchModel
from chatglm.engine.slots import ID, LENGTH, NOBODY, USES_ADAPTER, Slots
from chatglm.generation.batch_sampling import Choice, choose
from chatglm.nn.transfer import to_device

logger = logging.getLogger(__name__)

BATCH_SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)


class SteppingModel(BatchModel, Protocol):
    """What a family's network offers to this runner, beside what it offers to the plain one.

    Attributes:
        lies_on_one_gpu: whether captured steps can be replayed, and pay.
        num_position_rows: R.
    """

    lies_on_one_gpu: bool
    num_position_rows: int

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
    ) -> None:
        """Take in all but the last id of each prompt."""
        ...

    def step(
        self,
        ids_B: Tensor,
        positions_BR: Tensor,
        pages: Any,
        table_BM: Tensor,
        lengths_B: Tensor,
        uses_adapter_B: Tensor,
    ) -> Tensor:
        """Scores [B, V] after one more id of each row; nothing is read by the host."""
        ...


@dataclass(frozen=True)
class Kind:
    """A step that needs a graph of its own.

    Attributes:
        size: rows.
        choice: how ids are chosen; a graph with `Choice.ALL` ends at the scores.
        has_penalty: some row avoids repetition.
        may_be_short: some row may not end yet.
    """

    size: int
    choice: Choice
    has_penalty: bool = False
    may_be_short: bool = False

    @property
    def graph(self) -> Kind:
        """The kind whose graph serves: sorting all scores is for few requests, and is done behind one."""
        return Kind(self.size, Choice.ALL) if self.choice is Choice.ALL else self


@dataclass(frozen=True)
class ComingIds:
    """Ids of a step that the device works on."""

    ids: Tensor
    is_done: torch.cuda.Event | None

    def read(self) -> list[int]:
        """One for each row; waits for the step."""
        if self.is_done is not None:
            self.is_done.synchronize()
        return self.ids.tolist()


class Steps:
    """The tensors and graphs of a network's steps, in the thread that calls it.

    Attributes:
        pages: keys and values of all requests.
        slots: what steps know of each request.
        sizes: of batches, ascending.
    """

    def __init__(self, model: SteppingModel, num_pages: int, max_running: int) -> None:
        """Take the memory of everything that graphs will point to.

        Args:
            model: the network, in eval mode.
            num_pages: that requests may have together.
            max_running: requests at once.
        """
        self._model = model
        self._device = torch.device(model.device)
        self.pages = model.new_pages(num_pages)
        context = blocks_for(model.cache_positions(model.config.max_sequence_length))
        self.slots = Slots(max_running, context, model.num_position_rows, model.config.vocab_size, self._device)
        self.sizes = [size for size in BATCH_SIZES if size < max_running] + [max_running]
        self._rows = {size: torch.zeros(size, dtype=torch.int64, device=self._device) for size in self.sizes}
        self._chosen = {size: torch.zeros(size, dtype=torch.int64, device=self._device) for size in self.sizes}
        # Slots that stand in the rows, and the scores of steps whose ids are chosen behind the graph, by size.
        self._slots_in_rows: dict[int, list[int]] = {}
        self._scores_of: dict[int, Tensor] = {}
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
                    for choice in (Choice.BEST, Choice.CANDIDATES):
                        self._prepare(Kind(size, choice))
                except torch.OutOfMemoryError:
                    logger.warning("There is no memory to prepare steps of %d requests at once.", size)

    @torch.inference_mode()
    def launch(self, slots: Sequence[int], kind: Kind) -> ComingIds:
        """Start a step of these slots.

        Args:
            slots: one for each row, no more than the largest size.
            kind: of the step; its size counts as the least.
        """
        kind = replace(kind, size=next(size for size in self.sizes if size >= len(slots)))
        self._prepare(kind)
        self._set_rows(list(slots), kind.size)
        self._graphs.replay(kind.graph, self._step_of(kind.graph))
        if kind.choice is Choice.ALL:
            slots_B = self._rows[kind.size]
            self._choose(slots_B, self.slots.numbers_of(slots_B)[0], self._scores_of[kind.size], kind)
        return self._coming_ids(len(slots), kind.size)

    @torch.inference_mode()
    def scores(self, slot: int) -> Tensor:
        """Scores [1, V] that the next step of a slot chooses from; nothing goes on by it."""
        return self._scores(*self.slots.numbers_of(torch.tensor([slot], device=self._device)))

    def _prepare(self, kind: Kind) -> None:
        """Capture a step of that kind if there is none, on rows that belong to nobody."""
        if self._graphs.needs(kind.graph) or (kind.choice is Choice.ALL and kind.size not in self._scores_of):
            slots_B = self._rows[kind.size].zero_()
            self._slots_in_rows.pop(kind.size, None)
            if kind.choice is Choice.ALL:
                self._scores_of[kind.size] = self._scores(*self.slots.numbers_of(slots_B)).clone()
            if self._graphs.needs(kind.graph):
                self._graphs.capture(kind.graph, self._step_of(kind.graph))

    def _set_rows(self, slots: list[int], size: int) -> None:
        """Say which slots take part, if it is not said yet."""
        if self._slots_in_rows.get(size) != slots:
            filled = torch.tensor(slots + [NOBODY] * (size - len(slots)))
            self._rows[size].copy_(to_device(filled, self._device))
            self._slots_in_rows[size] = slots

    def _step_of(self, kind: Kind) -> Callable[[], None]:
        return lambda: self.step(self._rows[kind.size], kind)

    def step(self, slots_B: Tensor, kind: Kind) -> None:
        """One id for each row, from where the last step left off. Read by nobody: this is what a graph holds."""
        numbers_BC, table_BM = self.slots.numbers_of(slots_B)
        scores_BV = self._scores(numbers_BC, table_BM)
        if kind.choice is Choice.ALL:
            self._scores_of[kind.size].copy_(scores_BV)
        else:
            self._choose(slots_B, numbers_BC, scores_BV, kind)

    def _choose(self, slots_B: Tensor, numbers_BC: Tensor, scores_BV: Tensor, kind: Kind) -> None:
        """The ids of a step, kept for the host and written where the next step finds them."""
        has_penalty = kind.has_penalty
        parameters = self.slots.parameters(slots_B, numbers_BC, has_penalty=has_penalty, may_be_short=kind.may_be_short)
        chosen_B = choose(scores_BV, parameters, kind.choice)
        self.slots.advance(slots_B, numbers_BC, chosen_B, has_penalty=has_penalty)
        self._chosen[kind.size].copy_(chosen_B)

    def _scores(self, numbers_BC: Tensor, table_BM: Tensor) -> Tensor:
        return self._model.step(
            numbers_BC[:, ID],
            self.slots.positions(numbers_BC),
            self.pages,
            table_BM,
            (numbers_BC[:, LENGTH] + 1).int(),
            numbers_BC[:, USES_ADAPTER].bool(),
        )

    def _coming_ids(self, num_rows: int, size: int) -> ComingIds:
        chosen = self._chosen[size][:num_rows]
        if self._device.type != "cuda":
            return ComingIds(chosen.to("cpu", copy=True), None)
        ids = torch.empty(num_rows, dtype=torch.int64, pin_memory=True)
        ids.copy_(chosen, non_blocking=True)
        is_done = torch.cuda.Event()
        is_done.record()
        return ComingIds(ids, is_done)
