"""Tensor parallelism: each process holds a shard of every layer, and all compute every token together.

    linear, sharded "rows"     rows of weight, scale and bias   some of the outputs: whole heads, or MLP columns
    linear, sharded "columns"  columns of weight                a part of every sum: all_reduce
    embedding                  rows of the vocabulary           the rows of its ids, zeros elsewhere: all_reduce
    head                       rows of the vocabulary           some of the logits: all_gather

All get the same logits bit for bit and sample the same token, so all must run the same requests in the same order.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from chatglm.devices import choose_device
from chatglm.errors import DeviceError, InvalidRequestError
from chatglm.model_spec import LinearSpec
from chatglm.nn.prefix_encoder import PrefixEncoder
from chatglm.nn.sharding import check_ranks, shard_range, shard_rows

# What torchrun sets for a process.
VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# Methods that would take a shard for the whole.
NEED_ALL = ("save_pretrained", "push_to_hub", "quantize", "resize_token_embeddings")


@dataclass(frozen=True)
class Shard:
    """What one process has of a tensor: some `rows`, or an equal part of the columns (a tensor of one dimension whole).

    "first" is for a bias to be summed: all of it in the first process, zeros in the others.
    """

    kind: Literal["rows", "columns", "first"]
    rank: int
    num_ranks: int
    rows: tuple[range, ...] = ()

    def row_ranges(self, num_rows: int) -> Sequence[range]:
        return self.rows if self.kind == "rows" else (range(num_rows),)

    def of_rows(self, rows: Tensor) -> Tensor:
        if self.kind == "columns" and rows.dim() == 2:
            return rows.chunk(self.num_ranks, dim=1)[self.rank]
        return torch.zeros_like(rows) if self.kind == "first" and self.rank else rows

    def shape(self, whole: tuple[int, ...]) -> tuple[int, ...]:
        num_rows, *columns = sum(map(len, self.row_ranges(whole[0]))), *whole[1:]
        if self.kind == "columns" and columns:
            columns = [columns[0] // self.num_ranks]
        return (num_rows, *columns)


Shards = Mapping[str, Shard]


@dataclass(frozen=True)
class Ranks:
    """The processes that share a network, as one of them sees it; it computes on `device`."""

    rank: int
    num_ranks: int
    device: torch.device

    def all_reduce(self, tensor: Tensor) -> Tensor:
        dist.all_reduce(tensor)
        return tensor

    def all_gather(self, shard: Tensor) -> Tensor:
        """Every process's [..., n], concatenated in the last dimension."""
        shards = [torch.empty_like(shard) for _ in range(self.num_ranks)]
        dist.all_gather(shards, shard)
        return torch.cat(shards, dim=-1)


def init_process_group(name: str | torch.device, **others: object) -> Ranks:
    """Wait for the other processes (an existing group is used again), and seed torch as the first process is seeded.

    `others` are loading options that must be false. With "auto" or "cuda" each process has the GPU of its LOCAL_RANK.
    Raises DeviceError (device absent or without process groups), InvalidRequestError (no torchrun, or an option).
    """
    used = [option for option, value in others.items() if value]
    if used:
        raise InvalidRequestError(f"tensor_parallel and {used[0]} exclude each other.", "Leave one of them out.")
    if any(variable not in os.environ for variable in VARIABLES):
        raise InvalidRequestError(
            "tensor_parallel is for several processes, but this one was started alone.",
            "Start the program with `torchrun --nproc_per_node 2 PROGRAM`.",
        )
    device = choose_device(name)
    if device.type == "cuda":
        if str(name).strip().lower() in ("auto", "cuda"):
            device = choose_device(f"cuda:{os.environ['LOCAL_RANK']}")
        torch.cuda.set_device(device)
    elif device.type != "cpu":
        raise DeviceError(f"A model cannot be sharded over processes on {device}.", "Use --device cuda or cpu.")
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    seed = torch.tensor([torch.initial_seed() % 2**63], device=device)
    dist.broadcast(seed, src=0)
    torch.manual_seed(int(seed))
    return Ranks(dist.get_rank(), dist.get_world_size(), device)


def shard_network(network: Any, ranks: Ranks) -> dict[str, Shard]:
    """Reduce an empty network to this process's shards, by tensor name; InvalidRequestError if it cannot be divided."""
    spec = network.spec
    check_ranks(spec, network.config, ranks.num_ranks)
    network.num_ranks = ranks.num_ranks
    network.requires_grad_(False)  # gradients would be those of a shard only
    shards: dict[str, Shard] = {}
    vocabulary = (shard_range(spec.vocab_size, ranks.rank, ranks.num_ranks),)
    for number in range(spec.num_layers):
        for linear in spec.linears:
            name = f"{spec.layers}.{number}.{linear.name}"
            shards |= _shard_linear(network.get_submodule(name), name, linear, ranks)
    embedding, head = network.get_submodule(spec.embedding), network.get_submodule(spec.head)
    shards |= _shrink(embedding, spec.embedding, ranks, vocabulary, weight="rows", weight_scale="rows")
    _wrap_forward(embedding, _look_up, ranks, vocabulary[0])
    shards |= _shrink(head, spec.head, ranks, vocabulary, weight="rows", weight_scale="rows", bias="rows")
    head.out_features //= ranks.num_ranks
    _wrap_forward(head, lambda forward, x: ranks.all_gather(forward(x)))
    for module in network.modules():
        if isinstance(module, PrefixEncoder):
            _wrap_forward(module, _own_heads, ranks)
    for method in NEED_ALL:
        setattr(network, method, _refuse)
    return shards


def _shard_linear(module: Any, name: str, linear: LinearSpec, ranks: Ranks) -> dict[str, Shard]:
    if linear.sharded == "rows":
        module.out_features //= ranks.num_ranks
        rows = tuple(shard_rows(linear, ranks.rank, ranks.num_ranks))
        return _shrink(module, name, ranks, rows, weight="rows", weight_scale="rows", bias="rows")
    module.in_features //= ranks.num_ranks
    _wrap_forward(module, lambda forward, x: ranks.all_reduce(forward(x)))
    return _shrink(module, name, ranks, (), weight="columns", weight_scale="columns", bias="first")


def _shrink(
    module: nn.Module, name: str, ranks: Ranks, rows: tuple[range, ...], **kinds: Literal["rows", "columns", "first"]
) -> dict[str, Shard]:
    shards = {}
    for leaf, kind in kinds.items():
        old = getattr(module, leaf, None)
        if old is not None:
            shard = Shard(kind, ranks.rank, ranks.num_ranks, rows)
            shards[f"{name}.{leaf}"] = shard
            setattr(module, leaf, nn.Parameter(old.new_empty(shard.shape(tuple(old.shape))), requires_grad=False))
    return shards


def _wrap_forward(module: nn.Module, wrapped: Callable[..., Any], *others: Any) -> None:
    """Wrap the module's forward, in a class of its own: fast paths for its old class must not bypass it."""
    kind: Any = type(module)

    def forward(self: nn.Module, *inputs: Any) -> Any:
        return wrapped(partial(kind.forward, self), *others, *inputs)

    module.__class__ = type(f"Sharded{kind.__name__}", (kind,), {"forward": forward})


def _look_up(forward: Callable[[Tensor], Tensor], ranks: Ranks, rows: range, ids: Tensor) -> Tensor:
    own = ids - rows.start
    is_own = (own >= 0) & (own < len(rows))
    return ranks.all_reduce(forward(own.where(is_own, 0)).where(is_own[..., None], 0))


def _own_heads(forward: Callable[..., list[tuple[Tensor, Tensor]]], ranks: Ranks, *args: Any) -> Any:
    """The prefix [B, G, P, D] of each layer, for the heads of this process."""
    return [
        (key.chunk(ranks.num_ranks, dim=1)[ranks.rank], value.chunk(ranks.num_ranks, dim=1)[ranks.rank])
        for key, value in forward(*args)
    ]


def _refuse(*args: Any, **kwargs: Any) -> Any:
    raise InvalidRequestError(
        "This process has only a part of the model, which this would take for all of it.",
        "Load it without tensor_parallel.",
    )
