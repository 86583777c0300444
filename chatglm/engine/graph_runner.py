"""Runs requests with everything on the device: paged cache, sampling, and steps that are captured as graphs.

    host    launch step 1     launch step 2     read tokens of 1     launch step 3     read tokens of 2  ...
    device  [   step 1   ]    [   step 2   ]                         [   step 3   ]

The host learns of an answer's end one step late; that row is wasted once. Requests that a step cannot serve (logits
processors, an answer begun in the prompt) go to the plain runner.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from chatglm.engine.block_manager import BLOCK_TOKENS, BlockManager
from chatglm.engine.request import Request
from chatglm.engine.runner import Runner, memory_errors, one_by_one
from chatglm.engine.slots import SlotRow
from chatglm.engine.steps import PagedModel, PendingTokens, StepKind, Steps
from chatglm.errors import InvalidRequestError
from chatglm.generation.sampling import mode_for

logger = logging.getLogger(__name__)

# One call of so many ids keeps a GPU busy, and those who are being answered do not wait for it for long.
PROMPT_TOKENS_AT_ONCE = 4096


@dataclass
class Slot:
    """What a request holds here: its row, and how many steps have been launched for it."""

    number: int
    num_launched: int = 0


class GraphRunner:
    """Runs requests on a network, in the thread that calls it; see `runner.Runner`."""

    prompt_tokens_at_once = PROMPT_TOKENS_AT_ONCE

    def __init__(self, decoder: Any, blocks: BlockManager, max_running: int) -> None:
        """Allocate all pages for a `BatchDecoder` that can be paged; requests reserve theirs in `blocks` before."""
        self._decoder, self._blocks = decoder, blocks
        self._model: PagedModel = decoder.network.paged_decoder()
        self._plain = Runner(decoder)
        num_positions = decoder.cache_positions(decoder.spec.context_limit)
        self._steps = Steps(self._model, decoder.spec, blocks.total, num_positions, max_running)
        self._free_slots = list(range(max_running, 0, -1))
        self._slots: dict[Request, Slot] = {}
        self._pending: tuple[Sequence[Request], PendingTokens] | None = None
        # Requests of the plain runner, and the positions that their caches may have.
        self._plain_positions: dict[Request, int] = {}
        self._most_plain_positions = blocks.total * BLOCK_TOKENS // 8

    def warm_up(self) -> None:
        self._steps.warm_up()

    def prefill(self, requests: Sequence[Request]) -> None:
        self._forget_finished()
        paged = [request for request in requests if self._can_serve(request)]
        others = self._with_room([request for request in requests if request not in paged])
        with self._steps.current_device():
            if others:
                self._plain.prefill(others)
            if paged:
                one_by_one(self._fill, paged)

    def decode(self, requests: Sequence[Request]) -> None:
        """Start one more step for all, and hand out the tokens of the step before."""
        self._forget_finished()
        others = [request for request in requests if request not in self._slots]
        paged = [request for request in requests if self._goes_on(request)]
        with self._steps.current_device():
            before, error = self._pending, self._try_launch(paged)
            if before is not None:
                _hand_out(*before)
            if error is not None:  # of the device: it cannot be said whose it is
                for request in paged:
                    request.fail(error)
            if others:
                self._plain.decode(others)
        self._forget_finished()

    def logits(self, request: Request) -> Tensor:
        """Logits [1, V] that the next step of a request samples from; nothing goes on by it."""
        return self._steps.logits(self._slots[request].number)

    def _can_serve(self, request: Request) -> bool:
        has_own_end = len(request.eos_ids) > max(1, len(self._decoder.spec.eos_ids))
        return not request.processors and not has_own_end and self._model.can_step(request.prompt, request.layout)

    def _with_room(self, others: Sequence[Request]) -> list[Request]:
        """Those that the plain runner may take: their caches lie outside the pages, and may be an eighth of them."""
        taken = []
        for request in others:
            used = sum(self._plain_positions.values())
            if not used or used + request.num_positions <= self._most_plain_positions:
                self._plain_positions[request] = request.num_positions
                taken.append(request)
        return taken

    def _goes_on(self, request: Request) -> bool:
        slot = self._slots.get(request)
        return slot is not None and slot.num_launched < request.num_allowed

    def _forget_finished(self) -> None:
        for request in [request for request in self._slots if request.finish_reason is not None]:
            self._free_slots.append(self._slots.pop(request).number)
        self._plain_positions = {
            request: size for request, size in self._plain_positions.items() if request.finish_reason is None
        }

    def _fill(self, requests: Sequence[Request]) -> None:
        slots = [self._slot(request) for request in requests]
        tables = [torch.tensor(self._blocks.blocks_of(request), dtype=torch.int32) for request in requests]
        prompts = [request.prompt for request in requests]
        layouts = [request.layout for request in requests]
        uses_adapter = [request.uses_adapter for request in requests]
        with torch.inference_mode(), memory_errors(sum(prompt.shape[1] for prompt in prompts)):
            self._model.fill_pages(prompts, layouts, self._steps.pages, tables, uses_adapter)
            rows = [self._row(request, slot) for request, slot in zip(requests, slots, strict=True)]
            self._steps.slots.write(requests, rows)
        for request, slot in zip(requests, slots, strict=True):
            request.cache = slot

    def _slot(self, request: Request) -> Slot:
        """The slot of a request; the one it has, if its prompt was tried before."""
        if request not in self._slots:
            self._slots[request] = Slot(self._free_slots.pop())
        return self._slots[request]

    def _row(self, request: Request, slot: Slot) -> SlotRow:
        num_before = request.prompt.shape[1] - 1
        positions = self._model.answer_positions(request.layout, num_before)
        length = self._decoder.cache_positions(num_before, uses_adapter=request.uses_adapter)
        return SlotRow(slot.number, self._blocks.blocks_of(request), length, positions)

    def _try_launch(self, requests: Sequence[Request]) -> Exception | None:
        """Start a step, whose tokens are pending from then on; returns what went wrong."""
        self._pending = None
        if not requests:
            return None
        try:
            with memory_errors(max(len(request.token_ids) for request in requests)):
                pending = self._steps.launch([self._slots[request].number for request in requests], _kind_for(requests))
        except Exception as error:
            return error
        self._pending = requests, pending
        for request in requests:
            self._slots[request].num_launched += 1
        return None


def _kind_for(requests: Sequence[Request]) -> StepKind:
    return StepKind(
        len(requests),
        mode_for(request.config for request in requests),
        has_penalty=any(request.config.repetition_penalty != 1 for request in requests),
        eos_may_be_forbidden=any(request.min_length > request.prompt.shape[1] for request in requests),
    )


def _hand_out(requests: Sequence[Request], pending: PendingTokens) -> None:
    for request, token_id in zip(requests, pending.read(), strict=True):
        if request.finish_reason is None:
            request.accept(token_id)


def new_runner(decoder: Any, blocks: BlockManager, max_running: int, uses_graphs: bool | None) -> Runner | GraphRunner:
    """The runner for a network; `uses_graphs` None = on one GPU. Raises InvalidRequestError if it cannot use them."""
    network: Any = getattr(decoder, "network", None)
    can_step = hasattr(network, "paged_decoder")
    if uses_graphs and not can_step:
        raise InvalidRequestError(f"{type(network or decoder).__name__} has no steps that could be captured.")
    if uses_graphs or (uses_graphs is None and can_step and network.paged_decoder().lies_on_one_gpu):
        try:
            return GraphRunner(decoder, blocks, max_running)
        except torch.OutOfMemoryError:
            logger.warning("There is no memory for all pages at once; every request gets a cache of its own.")
    return Runner(decoder)
