"""Runs requests with everything on the device: pages, sampling, and steps that are captured as graphs.

Knows: slots and pages of requests, sizes of batches, and that ids are seen one step late. Does not know the network's
inside, who waits, or threads.

    host    launch step 1     launch step 2     read ids of 1     launch step 3     read ids of 2  ...
    device  [   step 1   ]    [   step 2   ]                      [   step 3   ]

A step's last act is to choose ids and to write them where the next one finds them, so the host never stands between
two steps. It learns of an answer's end one step late, and the row of the ended is wasted once.
Batches have a few sizes; rows that are left over belong to nobody.

Requests that a step cannot serve (logits processors, an answer begun in the prompt) go to the plain runner.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from chatglm.engine.blocks import blocks_for
from chatglm.engine.graphs import Graphs
from chatglm.engine.page_table import PageTable
from chatglm.engine.request import Request
from chatglm.engine.runner import BatchModel, Runner
from chatglm.engine.slots import ID, LENGTH, NOBODY, USES_ADAPTER, Row, Slots
from chatglm.errors import InvalidRequestError
from chatglm.generation.batch_sampling import INVALID, Choice, choice_for, choose
from chatglm.generation.decode import memory_errors
from chatglm.generation.sampling import invalid_scores

BATCH_SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
# One call of so many ids keeps a GPU busy, and those who are being answered do not wait for it for long.
PROMPT_TOKENS_AT_ONCE = 4096


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


@dataclass
class Seat:
    """What a request holds here."""

    slot: int
    pages: list[int]
    num_launched: int = 0


@dataclass(frozen=True)
class Kind:
    """A step that needs a graph of its own."""

    size: int
    choice: Choice
    has_penalty: bool


@dataclass(frozen=True)
class Launched:
    """A step that the device works on: who takes part, and where the ids will be."""

    requests: Sequence[Request]
    ids: Tensor
    is_done: torch.cuda.Event | None

    def read(self) -> list[int]:
        """The ids, one for each request; waits for the step."""
        if self.is_done is not None:
            self.is_done.synchronize()
        return self.ids[: len(self.requests)].tolist()


class GraphRunner:
    """Runs requests on a network, in the thread that calls it; see `runner.Runner`."""

    prompt_tokens_at_once = PROMPT_TOKENS_AT_ONCE

    def __init__(self, model: SteppingModel, num_blocks: int, max_running: int) -> None:
        """Take the memory for all pages.

        Args:
            model: the network, in eval mode.
            num_blocks: pages that requests may reserve together.
            max_running: requests at once.
        """
        self._model = model
        self._plain = Runner(model)
        self._device = torch.device(model.device)
        self._table = PageTable(num_blocks)
        self._pages = model.new_pages(num_blocks)
        self._free_slots = list(range(max_running, 0, -1))
        self._seats: dict[Request, Seat] = {}
        self._graphs = Graphs(self._device)
        self._sizes = [size for size in BATCH_SIZES if size < max_running] + [max_running]
        self._rows = {size: torch.zeros(size, dtype=torch.int64, device=self._device) for size in self._sizes}
        self._chosen = {size: torch.zeros(size, dtype=torch.int64, device=self._device) for size in self._sizes}
        self._slots_in_rows: dict[int, list[int]] = {}
        self._pending: Launched | None = None
        context = model.cache_positions(model.config.max_sequence_length)
        self._slots = Slots(
            max_running, blocks_for(context), model.num_position_rows, model.config.vocab_size, self._device
        )

    def prefill(self, requests: Sequence[Request]) -> None:
        """Take in the prompts; a request whose prompt cannot be taken in ends."""
        self._forget_ended()
        mine = [request for request in requests if self._can_serve(request)]
        others = [request for request in requests if request not in mine]
        with self._current_device():
            if others:
                self._plain.prefill(others)
            if mine:
                self._prefill_mine(mine)

    def decode(self, requests: Sequence[Request]) -> None:
        """Start one more step for all, and hand out the ids of the step before."""
        self._forget_ended()
        others = [request for request in requests if request not in self._seats]
        with self._current_device():
            launched = self._try_launch([request for request in requests if self._goes_on(request)])
            before, self._pending = self._pending, launched
            if before is not None:
                self._hand_out(before)
            if others:
                self._plain.decode(others)
        self._forget_ended()

    @torch.inference_mode()
    def scores(self, request: Request) -> Tensor:
        """Scores [1, V] that the next step of a request chooses from; nothing goes on by it."""
        slots_B = torch.tensor([self._seats[request].slot], device=self._device)
        return self._scores(*self._slots.numbers_of(slots_B))

    def _current_device(self) -> AbstractContextManager[object]:
        """Streams, events and graphs belong to the current device, whatever their tensors say."""
        return torch.cuda.device(self._device) if self._device.type == "cuda" else nullcontext()

    def _can_serve(self, request: Request) -> bool:
        if request.tokens.processors:
            return False
        return self._model.can_step(request.prompt, request.layout)

    def _goes_on(self, request: Request) -> bool:
        """Whether a request may get more ids than are under way."""
        seat = self._seats.get(request)
        return seat is not None and seat.num_launched < request.num_allowed

    def _forget_ended(self) -> None:
        for request in [request for request in self._seats if request.finish_reason is not None]:
            self._free_slots.append(self._seats.pop(request).slot)
            self._table.release(request)

    # --- prompts ---

    def _prefill_mine(self, requests: Sequence[Request]) -> None:
        try:
            self._fill(requests)
        except Exception as error:
            if len(requests) == 1:
                requests[0].fail(error)
                return
            for request in requests:
                self._prefill_mine([request])

    def _fill(self, requests: Sequence[Request]) -> None:
        seats = [self._seat(request) for request in requests]
        tables = [torch.tensor(seat.pages, dtype=torch.int32) for seat in seats]
        prompts = [request.prompt for request in requests]
        layouts = [request.layout for request in requests]
        uses_adapter = [request.uses_adapter for request in requests]
        with torch.inference_mode(), memory_errors(sum(prompt.shape[1] for prompt in prompts)):
            self._model.fill_pages(prompts, layouts, self._pages, tables, uses_adapter)
            rows = [self._row(request, seat) for request, seat in zip(requests, seats, strict=True)]
            self._slots.write(requests, rows)
        for request, seat in zip(requests, seats, strict=True):
            request.cache = seat

    def _seat(self, request: Request) -> Seat:
        """Slot and pages of a request; those it has, if its prompt was tried before."""
        if request not in self._seats:
            pages = self._table.take(request, blocks_for(request.num_positions))
            self._seats[request] = Seat(self._free_slots.pop(), pages)
        return self._seats[request]

    def _row(self, request: Request, seat: Seat) -> Row:
        num_before = request.prompt.shape[1] - 1
        positions = self._model.answer_positions(request.layout, num_before)
        length = self._model.cache_positions(num_before, uses_adapter=request.uses_adapter)
        return Row(seat.slot, seat.pages, length, positions)

    # --- steps ---

    def _try_launch(self, requests: Sequence[Request]) -> Launched | None:
        if not requests:
            return None
        try:
            return self._launch(requests)
        except Exception as error:  # of the device: it cannot be said whose it is
            for request in requests:
                request.fail(error)
            return None

    def _launch(self, requests: Sequence[Request]) -> Launched:
        configs = [request.tokens.config for request in requests]
        size = next(size for size in self._sizes if size >= len(requests))
        kind = Kind(size, choice_for(configs), any(config.repetition_penalty != 1 for config in configs))
        with torch.inference_mode(), memory_errors(max(request.tokens.ids.shape[1] for request in requests)):
            self._prepare(kind)
            self._set_rows(requests, size)
            self._graphs.replay(kind, self._step_of(kind))
            launched = self._copy_ids(requests, size)
        for request in requests:
            self._seats[request].num_launched += 1
        return launched

    def _prepare(self, kind: Kind) -> None:
        """Capture a step of that kind if there is none, on rows that belong to nobody."""
        # Sorting all scores is for few requests, and no graph has to bear it.
        if kind.choice is not Choice.ALL and self._graphs.needs(kind):
            self._rows[kind.size].zero_()
            self._slots_in_rows.pop(kind.size, None)
            self._graphs.capture(kind, self._step_of(kind))

    def _set_rows(self, requests: Sequence[Request], size: int) -> None:
        """Say which slots take part; only when they change, for the copy may wait for the device."""
        slots = [self._seats[request].slot for request in requests]
        if self._slots_in_rows.get(size) != slots:
            self._rows[size].copy_(torch.tensor(slots + [NOBODY] * (size - len(slots))))
            self._slots_in_rows[size] = slots

    def _step_of(self, kind: Kind) -> Callable[[], None]:
        return lambda: self._step(self._rows[kind.size], kind)

    def _step(self, slots_B: Tensor, kind: Kind) -> None:
        """One id for each row, from where the last step left off. Read by nobody: this is what a graph holds."""
        numbers_BC, table_BM = self._slots.numbers_of(slots_B)
        scores_BV = self._scores(numbers_BC, table_BM)
        parameters = self._slots.parameters(slots_B, numbers_BC, has_penalty=kind.has_penalty)
        chosen_B = choose(scores_BV, parameters, kind.choice)
        self._slots.advance(slots_B, numbers_BC, chosen_B, has_penalty=kind.has_penalty)
        self._chosen[kind.size].copy_(chosen_B)

    def _scores(self, numbers_BC: Tensor, table_BM: Tensor) -> Tensor:
        return self._model.step(
            numbers_BC[:, ID],
            self._slots.positions(numbers_BC),
            self._pages,
            table_BM,
            (numbers_BC[:, LENGTH] + 1).int(),
            numbers_BC[:, USES_ADAPTER].bool(),
        )

    def _copy_ids(self, requests: Sequence[Request], size: int) -> Launched:
        """The ids of the step just launched, on their way to the host."""
        if self._device.type != "cuda":
            return Launched(requests, self._chosen[size].to("cpu", copy=True), None)
        ids = torch.empty(size, dtype=torch.int64, pin_memory=True)
        ids.copy_(self._chosen[size], non_blocking=True)
        is_done = torch.cuda.Event()
        is_done.record()
        return Launched(requests, ids, is_done)

    def _hand_out(self, launched: Launched) -> None:
        for request, token_id in zip(launched.requests, launched.read(), strict=True):
            if request.finish_reason is None:
                _give(request, token_id)


def _give(request: Request, token_id: int) -> None:
    try:
        if token_id == INVALID:
            raise invalid_scores()
        request.take_id(token_id)
    except Exception as error:
        request.fail(error)


def new_runner(model: Any, num_blocks: int, max_running: int, uses_graphs: bool | None) -> Runner | GraphRunner:
    """The runner for a network; `uses_graphs` None = graphs where it lies on one GPU.

    Raises:
        InvalidRequestError: graphs are asked for, and the network cannot take such steps.
    """
    can_step = hasattr(model, "step")
    if uses_graphs and not can_step:
        raise InvalidRequestError(f"{type(model).__name__} has no steps that could be captured.")
    if uses_graphs or (uses_graphs is None and can_step and model.lies_on_one_gpu):
        return GraphRunner(model, num_blocks, max_running)
    return Runner(model)
