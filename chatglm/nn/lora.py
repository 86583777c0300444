"""A linear layer with an attached low-rank update, base(x) + B A x, and the switch that says which rows use it.

Source: Hu et al., "LoRA", https://arxiv.org/abs/2106.09685. The scale is part of B.
Shapes: r rank, I and O widths of the layer, T rows of a call (positions or requests), last but one in its input.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import chain, repeat
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from chatglm.errors import InvalidRequestError
from chatglm.nn.transfer import to_device

# None: every row uses the update. False: none does. A tensor [T], bool or of 0 and 1: those with 1 do.
Rows = Tensor | Literal[False] | None

# Each thread begins with None, and sees nothing of what another one says.
_rows: ContextVar[Rows] = ContextVar("rows that use the update", default=None)


@contextmanager
def updates_for(rows: Rows) -> Iterator[None]:
    """Within it, in this thread, `LowRankLinear` adds the update to these rows only; graphs may capture it."""
    token = _rows.set(rows)
    try:
        yield
    finally:
        _rows.reset(token)


def rows_using(uses: Sequence[bool], lengths: Sequence[int], num_rows: int, device: torch.device) -> Rows:
    """The rows of a packed call of T = `num_rows` rows, in the form that costs least.

    Request i has `lengths[i]` rows, with the update if `uses[i]`; the rest is padding. A tensor lies on `device`.
    """
    if all(uses):
        return None
    if not any(uses):
        return False
    flags = list(chain.from_iterable(map(repeat, uses, lengths)))
    return to_device(torch.tensor(flags + [False] * (num_rows - len(flags))), device)


class LowRankLinear(nn.Module):
    """`base` with the update [O, r] [r, I] (`up`, `down`) for the rows that `updates_for` names."""

    def __init__(self, base: nn.Module, down_rI: Tensor, up_Or: Tensor) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Parameter(down_rI, requires_grad=False)
        # It lies in memory as [r, O]: a single row times rows of 8 numbers would take a CPU three times as long.
        self.up = nn.Parameter(up_Or.T.contiguous().T, requires_grad=False)

    @property
    def in_features(self) -> int:
        """I."""
        return self.down.shape[1]

    @property
    def out_features(self) -> int:
        """O."""
        return self.up.shape[0]

    def forward(self, x: Tensor) -> Tensor:
        rows = _rows.get()
        if rows is False:
            return self.base(x)
        narrow = F.linear(x, self.down.to(x.dtype))
        if rows is not None:
            # The narrow side is the cheap one; what is 0 there adds 0.
            dtype = rows.dtype if rows.dtype == torch.bool else x.dtype
            narrow = narrow * rows.to(x.device, dtype)[:, None]
        return self.base(x) + F.linear(narrow, self.up.to(x.dtype))

    def merged_weight(self) -> Tensor:
        """Base and update as one new weight [O, I]; raises InvalidRequestError if the base is packed."""
        if not isinstance(self.base, nn.Linear):
            raise InvalidRequestError(
                "The LoRA update is attached to packed weights and cannot be merged into them.",
                "Go on loading it with --lora-checkpoint, or load the unquantized model with it to write both as one.",
            )
        return updated(self.base.weight, self.down, self.up)


@torch.no_grad()
def updated(weight_OI: Tensor, down_rI: Tensor, up_Or: Tensor) -> Tensor:
    """The weight plus B A, new, in its own type; the sum is made in float32."""
    update = up_Or.float() @ down_rI.float()
    return (weight_OI.float() + update.to(weight_OI.device)).to(weight_OI.dtype)


def merged_state(network: nn.Module) -> dict[str, Any] | None:
    """The state of a network with its updates merged, named as without them; None if it has none.

    Merged weights are copies, the others the network's own. Raises InvalidRequestError if a weight to merge is packed.
    """
    layers = {name: layer for name, layer in network.named_modules() if isinstance(layer, LowRankLinear)}
    if not layers:
        return None
    merged = {f"{name}.base.weight": layer.merged_weight() for name, layer in layers.items()}
    beside = {f"{name}.{part}" for name in layers for part in ("down", "up")}
    state = network.state_dict()
    return {_name_without(name, layers): merged.get(name, state[name]) for name in state if name not in beside}


def _name_without(name: str, layers: dict[str, LowRankLinear]) -> str:
    owner, _, leaf = name.rpartition(".")
    outer = owner.removesuffix(".base")
    return f"{outer}.{leaf}" if outer in layers else name
