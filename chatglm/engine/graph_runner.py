"""Runs requests with everything on the device: pages, sampling, and steps that are captured as graphs.

Knows: slots and pages of requests, and that ids are seen one step late. Does not know the tensors of a step (steps.py),
the network's inside, who waits, or threads.

    host    launch step 1     launch step 2     read ids of 1     launch step 3     read ids of 2  ...
    device  [   step 1   ]    [   step 2   ]                      [   step 3   ]

A step's last act is to choose ids and to write them where the next one finds them, so the host never stands between
two steps. It learns of an answer's end one step late, and the row of the ended is wasted once.
Batches have a few sizes; rows that are left over belong to nobody.

Requests that a step cannot serve (logits processors, an answer begun in the prompt) go to the plain runner.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from chatglm.engine.blocks import BLOCK_TOKENS, blocks_for
from chatglm.engine.page_table import PageTable
from chatglm.engine.request import Request
from chatglm.engine.runner import Runner, one_by_one
from chatglm.engine.slots import Row
from chatglm.engine.steps import ComingIds, Kind, SteppingModel, Steps
from chatglm.errors import InvalidRequestError
from chatglm.generation.batch_sampling import INVALID, choice_for
from chatglm.generation.decode import memory_errors
from chatglm.generation.sampling import invalid_logits

logger = logging.getLogger(__name__)

# One call of so many ids keeps a GPU busy, and those who are being answered do not wait for it for long.
PROMPT_TOKENS_AT_ONCE = 4096


@dataclass
class Seat:
    """What a request holds here."""

    slot: int
    pages: list[int]
    num_launched: int = 0


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
        self._steps = Steps(model, num_blocks, max_running)
        self._table = PageTable(num_blocks)
        self._free_slots = list(range(max_running, 0, -1))
        self._seats: dict[Request, Seat] = {}
        self._pending: tuple[Sequence[Request], ComingIds] | None = None
        # Requests of the plain runner, and the positions that their caches may have.
        self._beside: dict[Request, int] = {}
        self._most_beside = num_blocks * BLOCK_TOKENS // 8

    def warm_up(self) -> None:
        """Capture the usual steps, so that nobody has to wait for it later."""
        self._steps.warm_up()

    def prefill(self, requests: Sequence[Request]) -> None:
        """Take in the prompts; a request whose prompt cannot be taken in ends."""
        self._forget_ended()
        mine = [request for request in requests if self._can_serve(request)]
        others = self._with_room([request for request in requests if request not in mine])
        with self._steps.current_device():
            if others:
                self._plain.prefill(others)
            if mine:
                one_by_one(self._fill, mine)

    def decode(self, requests: Sequence[Request]) -> None:
        """Start one more step for all, and hand out the ids of the step before."""
        self._forget_ended()
        others = [request for request in requests if request not in self._seats]
        mine = [request for request in requests if self._goes_on(request)]
        with self._steps.current_device():
            before, error = self._pending, self._try_launch(mine)
            if before is not None:
                _hand_out(*before)
            if error is not None:  # of the device: it cannot be said whose it is
                for request in mine:
                    request.fail(error)
            if others:
                self._plain.decode(others)
        self._forget_ended()

    def scores(self, request: Request) -> Tensor:
        """Scores [1, V] that the next step of a request chooses from; nothing goes on by it."""
        return self._steps.scores(self._seats[request].slot)

    def _can_serve(self, request: Request) -> bool:
        if request.tokens.processors:
            return False
        return self._model.can_step(request.prompt, request.layout)

    def _with_room(self, others: Sequence[Request]) -> list[Request]:
        """Those that may run beside: their caches lie outside the pages, and together may take an eighth of that."""
        chosen = []
        for request in others:
            used = sum(self._beside.values())
            if not used or used + request.num_positions <= self._most_beside:
                self._beside[request] = request.num_positions
                chosen.append(request)
        return chosen

    def _goes_on(self, request: Request) -> bool:
        """Whether a request may get more ids than are under way."""
        seat = self._seats.get(request)
        return seat is not None and seat.num_launched < request.num_allowed

    def _forget_ended(self) -> None:
        for request in [request for request in self._seats if request.finish_reason is not None]:
            self._free_slots.append(self._seats.pop(request).slot)
            self._table.release(request)
        self._beside = {request: size for request, size in self._beside.items() if request.finish_reason is None}

    # --- prompts ---

    def _fill(self, requests: Sequence[Request]) -> None:
        seats = [self._seat(request) for request in requests]
        tables = [torch.tensor(seat.pages, dtype=torch.int32) for seat in seats]
        prompts = [request.prompt for request in requests]
        layouts = [request.layout for request in requests]
        uses_adapter = [request.uses_adapter for request in requests]
        with torch.inference_mode(), memory_errors(sum(prompt.shape[1] for prompt in prompts)):
            self._model.fill_pages(prompts, layouts, self._steps.pages, tables, uses_adapter)
            rows = [self._row(request, seat) for request, seat in zip(requests, seats, strict=True)]
            self._steps.slots.write(requests, rows)
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

    def _try_launch(self, requests: Sequence[Request]) -> Exception | None:
        """Start a step, whose ids are pending from then on; returns what went wrong."""
        self._pending = None
        if not requests:
            return None
        try:
            with memory_errors(max(request.tokens.ids.shape[1] for request in requests)):
                coming = self._steps.launch([self._seats[request].slot for request in requests], _kind_for(requests))
        except Exception as error:
            return error
        self._pending = requests, coming
        for request in requests:
            self._seats[request].num_launched += 1
        return None


def _kind_for(requests: Sequence[Request]) -> Kind:
    tokens = [request.tokens for request in requests]
    return Kind(
        len(requests),
        choice_for(one.config for one in tokens),
        has_penalty=any(one.config.repetition_penalty != 1 for one in tokens),
        may_be_short=any(one.end_from > one.ids.shape[1] - one.num_made for one in tokens),
    )


def _hand_out(requests: Sequence[Request], coming: ComingIds) -> None:
    for request, token_id in zip(requests, coming.read(), strict=True):
        if request.finish_reason is None:
            _give(request, token_id)


def _give(request: Request, token_id: int) -> None:
    try:
        if token_id == INVALID:
            raise invalid_logits()
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
        try:
            return GraphRunner(model, num_blocks, max_running)
        except torch.OutOfMemoryError:
            logger.warning("There is no memory for all pages at once; every request gets a cache of its own.")
    return Runner(model)
