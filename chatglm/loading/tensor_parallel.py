"""One network over several processes: each holds a part of every layer, and all compute every token together.

Knows: how the processes that torchrun started meet, which part of a stored tensor each of them has, and where their
results are joined. Does not know which layers a family splits (its `tp_plan` says so), or how files are read.

    in the plan            a process has                     and its result is
    colwise                rows of weight, scale and bias    some of the outputs: whole heads, or MLP columns
    rowwise                columns of weight                 a part of every sum: added up over the processes
    embedding_rowwise      rows of the table                 the rows of its ids, zeros elsewhere: added up
    colwise_gather_output  rows of weight and scale          some of the scores: put together

Every process gets the same scores, bit for bit, so that all choose the same next id. All of them must therefore run
the same requests in the same order.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from chatglm.devices import choose_device
from chatglm.errors import DeviceError, InvalidRequestError
from chatglm.nn.prefix_encoder import PrefixEncoder

# What torchrun tells a process.
PLACE = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# Methods that would take this process's part for the whole.
NEED_ALL = ("save_pretrained", "push_to_hub", "quantize", "resize_token_embeddings")


@dataclass(frozen=True)
class Part:
    """What one process has of a tensor.

    Attributes:
        kind: an equal share of its rows, or of its columns, which a tensor of one dimension has not: it is whole then;
            or all of it in the first process and zeros in the others, for something that is added up.
        rank: number of the process.
        num_ranks: how many there are.
    """

    kind: Literal["rows", "columns", "first"]
    rank: int
    num_ranks: int

    def rows(self, num_rows: int) -> range:
        """Which of so many rows to read."""
        if self.kind != "rows":
            return range(num_rows)
        return range(self.rank * num_rows // self.num_ranks, (self.rank + 1) * num_rows // self.num_ranks)

    def of_rows(self, rows: Tensor) -> Tensor:
        """What to keep of `rows` that were read."""
        if self.kind == "columns" and rows.dim() == 2:
            return rows.chunk(self.num_ranks, dim=1)[self.rank]
        return torch.zeros_like(rows) if self.kind == "first" and self.rank else rows

    def shape(self, whole: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the part of a tensor of shape `whole`."""
        num_rows, *columns = len(self.rows(whole[0])), *whole[1:]
        if self.kind == "columns" and columns:
            columns = [columns[0] // self.num_ranks]
        return (num_rows, *columns)


Parts = Mapping[str, Part]


@dataclass(frozen=True)
class Ranks:
    """The processes that share a network, as one of them sees it.

    Attributes:
        rank: its own number; 0 is the one that speaks to the user.
        num_ranks: how many there are.
        device: where it computes.
    """

    rank: int
    num_ranks: int
    device: torch.device

    def add_up(self, tensor: Tensor) -> Tensor:
        """The sum of every process's tensor, in place."""
        dist.all_reduce(tensor)
        return tensor

    def put_together(self, part: Tensor) -> Tensor:
        """Every process's [..., n], behind one another in the last dimension."""
        parts = [torch.empty_like(part) for _ in range(self.num_ranks)]
        dist.all_gather(parts, part)
        return torch.cat(parts, dim=-1)


def meet(name: str | torch.device, **others: object) -> Ranks:
    """Wait for the other processes, and give them the random source of the first, for requests that have no seed.

    The processes of an earlier call, or that the program itself has brought together, are used again. They part when
    the program ends.

    Args:
        name: the device; with "auto" and "cuda" each process has a GPU of its own, by its number in this machine.
        **others: options of loading that do not go with this one; a true one is refused.

    Raises:
        DeviceError: no such device, or one that processes cannot share a network on.
        InvalidRequestError: torchrun did not start this process, or an option is refused.
    """
    used = [option for option, value in others.items() if value]
    if used:
        raise InvalidRequestError(f"tensor_parallel and {used[0]} exclude each other.", "Leave one of them out.")
    if any(variable not in os.environ for variable in PLACE):
        raise InvalidRequestError(
            "tensor_parallel is for several processes, but this one was started alone.",
            "Start the program with `torchrun --nproc_per_node 2 PROGRAM`.",
        )
    device = _device(name)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    seed = torch.tensor([torch.initial_seed() % 2**63], device=device)
    dist.broadcast(seed, src=0)
    torch.manual_seed(int(seed))
    return Ranks(dist.get_rank(), dist.get_world_size(), device)


def _device(name: str | torch.device) -> torch.device:
    device = choose_device(name)
    if device.type == "cuda":
        if str(name).strip().lower() in ("auto", "cuda"):
            device = choose_device(f"cuda:{os.environ['LOCAL_RANK']}")
        torch.cuda.set_device(device)
    elif device.type != "cpu":
        raise DeviceError(f"Processes cannot share a model on {device}.", "Use --device cuda or cpu.")
    return device


def split(network: Any, ranks: Ranks) -> dict[str, Part]:
    """Reduce a network without memory to what this process has of it; the parts of its tensors by name.

    Raises:
        InvalidRequestError: it cannot be split into so many equal parts.
    """
    network.check_ranks(ranks.num_ranks)
    network.num_ranks = ranks.num_ranks
    network.requires_grad_(False)  # gradients would be those of a part only
    parts: dict[str, Part] = {}
    for name, module in list(network.named_modules()):
        style = network.tp_plan.get(re.sub(r"\.\d+\.", ".*.", name))
        if style is not None:
            shrunk = _SPLITS[style](module, ranks)
            parts |= {f"{name}.{leaf}": part for leaf, part in shrunk.items()}
        elif isinstance(module, PrefixEncoder):
            _change(module, _own_heads, ranks)
    for method in NEED_ALL:
        setattr(network, method, _refuse)
    return parts


def _split_outputs(module: Any, ranks: Ranks) -> Parts:
    module.out_features //= ranks.num_ranks
    return _shrink(module, ranks, weight="rows", weight_scale="rows", bias="rows")


def _split_scores(module: Any, ranks: Ranks) -> Parts:
    parts = _split_outputs(module, ranks)
    _change(module, _put_together, ranks)
    return parts


def _split_inputs(module: Any, ranks: Ranks) -> Parts:
    module.in_features //= ranks.num_ranks
    _change(module, _added_up, ranks)
    return _shrink(module, ranks, weight="columns", weight_scale="columns", bias="first")


def _split_table(module: Any, ranks: Ranks) -> Parts:
    _change(module, _looked_up, ranks, module.weight.shape[0] // ranks.num_ranks)
    return _shrink(module, ranks, weight="rows", weight_scale="rows")


_SPLITS: dict[str, Callable[[Any, Ranks], Parts]] = {
    "colwise": _split_outputs,
    "colwise_gather_output": _split_scores,
    "rowwise": _split_inputs,
    "embedding_rowwise": _split_table,
}


def _shrink(module: nn.Module, ranks: Ranks, **kinds: Literal["rows", "columns", "first"]) -> Parts:
    parts = {}
    for leaf, kind in kinds.items():
        old = getattr(module, leaf, None)
        if old is not None:
            parts[leaf] = part = Part(kind, ranks.rank, ranks.num_ranks)
            new = old.new_empty(part.shape(tuple(old.shape)))
            setattr(module, leaf, nn.Parameter(new, requires_grad=False))
    return parts


def _change(module: nn.Module, changed: Callable[..., Any], *others: Any) -> None:
    """Let `changed(forward, *others, *inputs)` take the place of the module's forward.

    The module becomes one of a class of its own: who computes a layer of a certain class past its forward, as quick
    paths do, must not do so with this one.
    """
    kind: Any = type(module)

    def forward(self: nn.Module, *inputs: Any) -> Any:
        return changed(partial(kind.forward, self), *others, *inputs)

    module.__class__ = type(f"Shared{kind.__name__}", (kind,), {"forward": forward})


def _added_up(forward: Callable[[Tensor], Tensor], ranks: Ranks, x: Tensor) -> Tensor:
    return ranks.add_up(forward(x))


def _put_together(forward: Callable[[Tensor], Tensor], ranks: Ranks, x: Tensor) -> Tensor:
    return ranks.put_together(forward(x))


def _looked_up(forward: Callable[[Tensor], Tensor], ranks: Ranks, num_rows: int, ids: Tensor) -> Tensor:
    own = ids - ranks.rank * num_rows
    is_own = (own >= 0) & (own < num_rows)
    rows = forward(own.where(is_own, 0))
    return ranks.add_up(rows.where(is_own[..., None], 0))


def _own_heads(forward: Callable[..., list[tuple[Tensor, Tensor]]], ranks: Ranks, *args: Any) -> Any:
    """The prefix [B, H, P, D] of each layer, as it belongs to the heads of this process."""
    return [
        (key.chunk(ranks.num_ranks, dim=1)[ranks.rank], value.chunk(ranks.num_ranks, dim=1)[ranks.rank])
        for key, value in forward(*args)
    ]


def _refuse(*args: Any, **kwargs: Any) -> Any:
    raise InvalidRequestError(
        "This process has only a part of the model, which this would take for all of it.",
        "Load it without tensor_parallel.",
    )
