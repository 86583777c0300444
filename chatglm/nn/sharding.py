"""Which rows of a linear layer a tensor-parallel rank holds, and how many ranks a network can be sharded over."""

from __future__ import annotations

from typing import Any

from chatglm.errors import InvalidRequestError
from chatglm.model_spec import LinearSpec, ModelSpec

MAX_RANKS = 64


def shard_rows(linear: LinearSpec, rank: int, num_ranks: int) -> list[range]:
    """The rows of `rank`: an equal part of each segment.

    interleaved, 4 groups, 2 ranks    | q k v | q k v | q k v | q k v |    rank 0 has the first half
    concatenated                      |  q q  |  k k  |  v v  |            rank 0 has the first half of each
    """
    if linear.num_groups > 1:
        return [shard_range(linear.rows, rank, num_ranks)]
    ranges, start = [], 0
    for _, rows in linear.segments:
        own = shard_range(rows, rank, num_ranks)
        ranges.append(range(start + own.start, start + own.stop))
        start += rows
    return ranges


def shard_range(size: int, rank: int, num_ranks: int) -> range:
    """The numbers below `size` that are `rank`'s."""
    return range(rank * size // num_ranks, (rank + 1) * size // num_ranks)


def check_ranks(spec: ModelSpec, config: Any, num_ranks: int) -> None:
    """Raise InvalidRequestError unless `num_ranks` processes can each have whole heads and equal parts of the rest."""
    # A byte holds two int4 columns, and a scale belongs to a whole group of them.
    unit = config.quantization_group_size or (2 if config.quantization_bit == 4 else 1)
    if problem := _obstacle(spec, unit, num_ranks):
        possible = [str(number) for number in range(1, MAX_RANKS + 1) if not _obstacle(spec, unit, number)]
        raise InvalidRequestError(
            f"This model cannot be sharded over {num_ranks} processes: {problem}.",
            f"Start one of {', '.join(possible)}.",
        )


def _obstacle(spec: ModelSpec, unit: int, num_ranks: int) -> str:
    """What does not divide, in a few words; "" if everything does."""
    sizes = {"attention heads": spec.num_heads, "key and value heads": spec.num_kv_heads}
    for linear in spec.linears:
        if linear.sharded == "rows":
            sizes |= {f"rows of {linear.name} ({name})": rows for name, rows in linear.segments}
    sizes["rows of the vocabulary"] = spec.vocab_size
    for name, size in sizes.items():
        if size % num_ranks:
            return f"its {size} {name} do not divide by {num_ranks}"
    for linear in spec.linears:
        if linear.sharded == "rows" and linear.num_groups > 1 and linear.num_groups % num_ranks:
            return f"the {linear.num_groups} groups of {linear.name} do not divide by {num_ranks}"
        if linear.sharded == "columns" and linear.columns % (unit * num_ranks):
            return f"rows of {linear.columns} weights do not divide into {num_ranks} shards of whole groups of {unit}"
    return ""
