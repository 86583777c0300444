"""What a captured step reads of each request: one row (slot) of device tensors; padding slot 0 never changes.
Shapes: S slots, B rows of a step, M pages of a table, R position rows, E end tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from chatglm.engine.request import Request
from chatglm.generation.sampling import NO_TOKEN, SamplingRows
from chatglm.nn.transfer import to_device

# Columns of whole numbers. E end tokens follow, then R positions and R steps by which they grow. The first three change
# with every step.
TOKEN, LENGTH, COUNT, SEED, TOP_K, MIN_COUNT, USES_ADAPTER, EOS = range(8)
# Columns of fractions.
TEMPERATURE, TOP_P, PENALTY, NUM_FRACTIONS = range(4)
PADDING_SLOT = 0


@dataclass(frozen=True)
class SlotRow:
    """A new request in a slot from 1: pages in order, positions stored, int64 [2, R] next positions and increments."""

    slot: int
    pages: Sequence[int]
    length: int
    positions: Tensor


class Slots:
    """State of all slots, at addresses that never change (`seen` appears with the first request that needs it)."""

    def __init__(
        self,
        num_slots: int,
        table_width: int,
        num_position_rows: int,
        num_eos: int,
        vocab_size: int,
        device: torch.device,
    ) -> None:
        self._num_rows, self._positions = num_position_rows, EOS + num_eos
        self._vocab_size = vocab_size
        num_columns = self._positions + 2 * num_position_rows
        self.numbers = torch.zeros(num_slots + 1, num_columns, dtype=torch.int64, device=device)
        self.fractions = torch.ones(num_slots + 1, NUM_FRACTIONS, device=device)
        self.tables = torch.zeros(num_slots + 1, table_width, dtype=torch.int32, device=device)
        self.seen: Tensor | None = None

    def write(self, requests: Sequence[Request], rows: Sequence[SlotRow]) -> None:
        """Set the rows of new requests whose prompts have been taken in."""
        device = self.numbers.device
        slots = torch.tensor([row.slot for row in rows])
        numbers = [self._numbers_for(request, row) for request, row in zip(requests, rows, strict=True)]
        fractions = torch.tensor([_fractions(request) for request in requests])
        tables = torch.zeros(len(rows), self.tables.shape[1], dtype=torch.int32)
        for number, row in enumerate(rows):
            tables[number, : len(row.pages)] = torch.tensor(row.pages, dtype=torch.int32)
        on_device = to_device(slots, device)
        self.numbers.index_copy_(0, on_device, to_device(torch.stack(numbers), device))
        self.fractions.index_copy_(0, on_device, to_device(fractions, device))
        self.tables.index_copy_(0, on_device, to_device(tables, device))
        for request, row in zip(requests, rows, strict=True):
            self._see_prompt(request, row.slot)

    def sampling_rows(
        self, slots_B: Tensor, numbers_BC: Tensor, *, has_penalty: bool, eos_may_be_forbidden: bool
    ) -> SamplingRows:
        """Sampling parameters of a step's rows; the flags are true if any row has a penalty or a minimum length."""
        fractions = self.fractions.index_select(0, slots_B)
        return SamplingRows(
            seeds=numbers_BC[:, SEED],
            counts=numbers_BC[:, COUNT],
            temperatures=fractions[:, TEMPERATURE],
            top_ks=numbers_BC[:, TOP_K],
            top_ps=fractions[:, TOP_P],
            eos_ids=numbers_BC[:, EOS : self._positions],
            eos_allowed=numbers_BC[:, COUNT] >= numbers_BC[:, MIN_COUNT] if eos_may_be_forbidden else None,
            penalties=fractions[:, PENALTY],
            seen=self.seen.index_select(0, slots_B) if has_penalty and self.seen is not None else None,
        )

    def numbers_of(self, slots_B: Tensor) -> tuple[Tensor, Tensor]:
        """The whole numbers of a step's rows [B, columns], and their tables [B, M]."""
        return self.numbers.index_select(0, slots_B), self.tables.index_select(0, slots_B)

    def positions(self, numbers_BC: Tensor) -> Tensor:
        """Positions of the tokens of a step's rows, [B, R]."""
        return numbers_BC[:, self._positions : self._positions + self._num_rows]

    def advance(self, slots_B: Tensor, numbers_BC: Tensor, sampled_B: Tensor, *, has_penalty: bool) -> None:
        """Write the rows back as the next step finds them; padding rows stay as they are."""
        is_request_B = slots_B != PADDING_SLOT
        # A row without a token will end; until the host knows, it goes on with one that exists.
        ids_B = sampled_B.clamp(min=0)
        steps_BR = numbers_BC[:, self._positions + self._num_rows :]
        after_BC = torch.cat(
            (
                ids_B[:, None],
                numbers_BC[:, LENGTH : COUNT + 1] + 1,
                numbers_BC[:, COUNT + 1 : self._positions],
                self.positions(numbers_BC) + steps_BR,
                steps_BR,
            ),
            dim=1,
        )
        self.numbers.index_copy_(0, slots_B, torch.where(is_request_B[:, None], after_BC, numbers_BC))
        if has_penalty and self.seen is not None:
            self.seen.index_put_((slots_B, ids_B), self.seen.new_ones(()))

    def _numbers_for(self, request: Request, row: SlotRow) -> Tensor:
        columns = {
            TOKEN: request.token_ids[-1],
            LENGTH: row.length,
            COUNT: 0,
            SEED: request.seed,
            TOP_K: min(request.config.top_k, NO_TOKEN),
            MIN_COUNT: request.min_length - request.prompt.shape[1],
            USES_ADAPTER: int(request.uses_adapter),
        }
        num_eos = self._positions - EOS
        eos_ids = [min(token, NO_TOKEN) for token in request.eos_ids] + [NO_TOKEN] * (num_eos - len(request.eos_ids))
        return torch.cat((torch.tensor([columns[number] for number in range(EOS)] + eos_ids), row.positions.flatten()))

    def _see_prompt(self, request: Request, slot: int) -> None:
        if request.config.repetition_penalty == 1:
            return
        if self.seen is None:
            shape = (self.numbers.shape[0], self._vocab_size)
            self.seen = torch.zeros(shape, dtype=torch.bool, device=self.numbers.device)
        seen_V = torch.zeros(self._vocab_size, dtype=torch.bool)
        seen_V[request.prompt[0]] = True
        self.seen[slot].copy_(to_device(seen_V, self.seen.device))


def _fractions(request: Request) -> list[float]:
    config = request.config
    return [0.0 if config.is_greedy else config.temperature, config.top_p, config.repetition_penalty]
