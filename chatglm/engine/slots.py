"""What a step must know of each request, in tensors on the device: one row, a slot, for each.

Knows: which number stands in which column, writing new rows, reading the rows of a step and writing them back. Does
not know the network or when steps run. Slot 0 belongs to nobody: it fills up batches and never changes.
Shapes: S slots, B rows of a step, M pages of a table, R position rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from chatglm.engine.request import Request
from chatglm.generation.batch_sampling import RowParameters
from chatglm.nn.transfer import to_device

# Columns of whole numbers; positions and what they grow by from step to step come last, R of each. The first three
# change with every step.
ID, LENGTH, COUNT, SEED, TOP_K, END_ID, END_FROM, USES_ADAPTER, POSITIONS = range(9)
# Columns of fractions.
TEMPERATURE, TOP_P, PENALTY, NUM_FRACTIONS = range(4)
NOBODY = 0
# More than any vocabulary has.
LARGEST = 2**31


@dataclass(frozen=True)
class Row:
    """A request that comes in.

    Attributes:
        slot: its number, from 1.
        pages: its pages in order.
        length: positions stored for it.
        positions: int64 [2, R], those of its next id, and what they grow by.
    """

    slot: int
    pages: Sequence[int]
    length: int
    positions: Tensor


class Slots:
    """State of all slots, at addresses that never change (`seen` appears with the first request that needs it)."""

    def __init__(
        self, num_slots: int, table_width: int, num_position_rows: int, vocabulary: int, device: torch.device
    ) -> None:
        self._num_rows = num_position_rows
        self._vocabulary = vocabulary
        self.numbers = torch.zeros(num_slots + 1, POSITIONS + 2 * num_position_rows, dtype=torch.int64, device=device)
        self.fractions = torch.ones(num_slots + 1, NUM_FRACTIONS, device=device)
        self.tables = torch.zeros(num_slots + 1, table_width, dtype=torch.int32, device=device)
        self.seen: Tensor | None = None

    def write(self, requests: Sequence[Request], rows: Sequence[Row]) -> None:
        """Set the rows of newcomers whose prompts have been taken in."""
        device = self.numbers.device
        slots = torch.tensor([row.slot for row in rows])
        numbers = [_numbers(request, row) for request, row in zip(requests, rows, strict=True)]
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

    def parameters(
        self, slots_B: Tensor, numbers_BC: Tensor, *, has_penalty: bool, may_be_short: bool
    ) -> RowParameters:
        """How the ids of a step's rows are chosen.

        Args:
            slots_B: of the rows.
            numbers_BC: theirs.
            has_penalty: some row avoids repetition.
            may_be_short: some row may not end yet.
        """
        fractions = self.fractions.index_select(0, slots_B)
        return RowParameters(
            seeds=numbers_BC[:, SEED],
            counts=numbers_BC[:, COUNT],
            temperatures=fractions[:, TEMPERATURE],
            top_ks=numbers_BC[:, TOP_K],
            top_ps=fractions[:, TOP_P],
            end_ids=numbers_BC[:, END_ID],
            may_end=numbers_BC[:, COUNT] >= numbers_BC[:, END_FROM] if may_be_short else None,
            penalties=fractions[:, PENALTY],
            seen=self.seen.index_select(0, slots_B) if has_penalty and self.seen is not None else None,
        )

    def numbers_of(self, slots_B: Tensor) -> tuple[Tensor, Tensor]:
        """The whole numbers of a step's rows [B, columns], and their tables [B, M]."""
        return self.numbers.index_select(0, slots_B), self.tables.index_select(0, slots_B)

    def positions(self, numbers_BC: Tensor) -> Tensor:
        """Positions of the ids of a step's rows, [B, R]."""
        return numbers_BC[:, POSITIONS : POSITIONS + self._num_rows]

    def advance(self, slots_B: Tensor, numbers_BC: Tensor, chosen_B: Tensor, *, has_penalty: bool) -> None:
        """Write the rows back as the next step finds them; those of nobody stay as they are."""
        is_somebody_B = slots_B != NOBODY
        # A row without an id will end; until the host knows, it goes on with one that exists.
        ids_B = chosen_B.clamp(min=0)
        steps_BR = numbers_BC[:, POSITIONS + self._num_rows :]
        after_BC = torch.cat(
            (
                ids_B[:, None],
                numbers_BC[:, LENGTH : COUNT + 1] + 1,
                numbers_BC[:, COUNT + 1 : POSITIONS],
                self.positions(numbers_BC) + steps_BR,
                steps_BR,
            ),
            dim=1,
        )
        self.numbers.index_copy_(0, slots_B, torch.where(is_somebody_B[:, None], after_BC, numbers_BC))
        if has_penalty and self.seen is not None:
            self.seen.index_put_((slots_B, ids_B), self.seen.new_ones(()))

    def _see_prompt(self, request: Request, slot: int) -> None:
        """Note the ids of a prompt whose answer avoids repetition."""
        if request.tokens.config.repetition_penalty == 1:
            return
        if self.seen is None:
            shape = (self.numbers.shape[0], self._vocabulary)
            self.seen = torch.zeros(shape, dtype=torch.bool, device=self.numbers.device)
        seen_V = torch.zeros(self._vocabulary, dtype=torch.bool)
        seen_V[request.prompt[0]] = True
        self.seen[slot].copy_(to_device(seen_V, self.seen.device))


def _numbers(request: Request, row: Row) -> Tensor:
    tokens, config = request.tokens, request.tokens.config
    # Seeds are whole numbers of any size; a request without one has a number from torch's own source.
    seed = int(torch.randint(2**62, ())) if config.seed is None else config.seed & (2**63 - 1)
    columns = {
        ID: int(request.prompt[0, -1]),
        LENGTH: row.length,
        COUNT: 0,
        SEED: seed,
        TOP_K: min(config.top_k, LARGEST),
        END_ID: min(tokens.end_id, LARGEST),
        END_FROM: tokens.end_from - request.prompt.shape[1],
        USES_ADAPTER: int(request.uses_adapter),
    }
    return torch.cat((torch.tensor([columns[number] for number in range(POSITIONS)]), row.positions.flatten()))


def _fractions(request: Request) -> list[float]:
    config = request.tokens.config
    return [0.0 if config.is_greedy else config.temperature, config.top_p, config.repetition_penalty]
