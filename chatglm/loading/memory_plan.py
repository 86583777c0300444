"""Which blocks of a network stay in memory under a limit, and which are read anew in every pass.

Every pass goes through all blocks in order (LRU would never hit): as many as fit stay, evenly spread; others are read
into one or two buffers while the kept ones compute.

    limit >= everything outside the blocks + blocks that stay + buffers + a reserve for reading and answering
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from chatglm import kernels
from chatglm.checkpoints import StoredTensor, WeightReader
from chatglm.errors import InvalidRequestError, OutOfMemoryError
from chatglm.loading.memory_estimate import bytes_in_memory
from chatglm.loading.tied_embedding import head_copies
from chatglm.sizes import format_bytes

MEGABYTE = 10**6
# A buffer of 4 MB, and what the heap was measured to grow by until the first answers were given.
RESERVED_BYTES = 16 * MEGABYTE


@dataclass(frozen=True)
class BlockSizes:
    """Bytes of one block: in memory, in the files, and what the kernels make of the weights and keep beside them."""

    weights: int
    stored: int
    working: int = 0


@dataclass(frozen=True)
class MemoryPlan:
    """The blocks read in every pass (none if all fits), bytes in memory, slots included, and bytes read per token."""

    streamed: tuple[str, ...] = ()
    num_blocks: int = 0
    num_slots: int = 0
    weights_bytes: int = 0
    bytes_per_pass: int = 0

    def has(self, name: str) -> bool:
        return _is_inside(name, self.streamed)

    @property
    def message(self) -> str:
        if not self.streamed:
            return ""
        num_kept = self.num_blocks - len(self.streamed)
        return (
            f"{num_kept} of {self.num_blocks} layers stay in memory, {len(self.streamed)} are read from the files for "
            f"every token ({format_bytes(self.bytes_per_pass)})."
        )


NO_LIMIT = MemoryPlan()


def plan_blocks(
    network: Any,
    folder: Path,
    stored: Mapping[str, StoredTensor],
    dtype: torch.dtype,
    limit: int,
    *,
    adapter_bytes: int = 0,
) -> MemoryPlan:
    """The plan with the fewest blocks to read that keeps the weights of an empty network to `limit` bytes.

    `adapter_bytes` are those of an attached LoRA adapter; `folder` is named in messages. Raises OutOfMemoryError with
    what is needed, InvalidRequestError if layers can only be read as a whole, CheckpointError for unreadable ones.
    """
    blocks = [f"{network.spec.layers}.{number}" for number in range(network.spec.num_layers)]
    sizes = [_block_sizes(network, block, stored, dtype) for block in blocks]
    outside = _bytes_outside(network, blocks, stored, dtype) + adapter_bytes + RESERVED_BYTES
    plan = make_plan(limit, outside, dict(zip(blocks, sizes, strict=True)))
    if plan is None:
        raise _too_little(folder, limit, outside, sizes)
    whole = next((tensor for name, tensor in stored.items() if plan.has(name) and tensor.offset is None), None)
    if whole is not None:
        raise InvalidRequestError(
            f"{whole.path} can only be read as a whole, not layer by layer.",
            f"Write it anew once: `python -m chatglm convert {folder} NEW_FOLDER`, then give that folder.",
        )
    return plan


def make_plan(limit: int, outside: int, blocks: Mapping[str, BlockSizes]) -> MemoryPlan | None:
    """The plan for `blocks` (name -> sizes, in the order of use) and `outside` other bytes; None if there is none."""
    for num_streamed in range(len(blocks) + 1):
        for num_slots in (2, 1) if num_streamed == len(blocks) else (2,):
            plan = _plan(outside, blocks, spread(num_streamed, len(blocks)), num_slots)
            if plan.weights_bytes <= limit:
                return plan
    return None


def spread(count: int, total: int) -> list[int]:
    """`count` of the numbers below `total`, at even distances."""
    return [i for i in range(total) if (i + 1) * count // total > i * count // total]


def quantizing_in_every_pass(folder: Path, bits: int) -> InvalidRequestError:
    """The error for --quantize together with --max-memory."""
    return InvalidRequestError(
        "--max-memory reads layers again for every token, and would quantize them every time.",
        f"Quantize once: `python -m chatglm quantize {folder} NEW_FOLDER --bits {bits}`, then give that folder.",
    )


def _plan(outside: int, blocks: Mapping[str, BlockSizes], streamed: Sequence[int], num_slots: int) -> MemoryPlan:
    names = [list(blocks)[i] for i in streamed]
    moving = [blocks[name] for name in names]
    kept = sum(block.weights + block.working for name, block in blocks.items() if name not in names)
    buffers = num_slots * max((block.weights for block in moving), default=0)
    buffers += max((block.working for block in moving), default=0)
    to_read = sum(block.stored for block in moving)
    return MemoryPlan(tuple(names), len(blocks), num_slots, outside + kept + buffers, to_read)


def _block_sizes(network: Any, block: str, stored: Mapping[str, StoredTensor], dtype: torch.dtype) -> BlockSizes:
    tensors = {f"{block}.{leaf}": t for leaf, t in network.get_submodule(block).named_parameters()}
    return BlockSizes(
        weights=bytes_in_memory(tensors.values(), dtype),
        stored=sum(stored[name].size_bytes for name in tensors),
        working=_bytes_made_by_kernels(network.config, tensors),
    )


def _bytes_made_by_kernels(config: Any, tensors: Mapping[str, torch.Tensor]) -> int:
    """Bytes of the repacked weights that torch's int4 operator reads, which are kept beside the stored ones."""
    if config.quantization_bit != 4 or kernels.backend_name() != "torch":
        return 0
    return sum(tensor.nbytes for tensor in tensors.values() if tensor.dtype == torch.int8)


def _bytes_outside(
    network: Any, blocks: Collection[str], stored: Mapping[str, StoredTensor], dtype: torch.dtype
) -> int:
    """Bytes of everything but the blocks; a tied embedding counts once."""
    outside = {name: tensor for name, tensor in network.state_dict().items() if not _is_inside(name, blocks)}
    with WeightReader(stored) as reader:
        is_tied = network.spec.head_weight not in stored or bool(head_copies(network, stored, reader))
    kept = [tensor for name, tensor in outside.items() if not (is_tied and name.startswith(f"{network.spec.head}."))]
    return bytes_in_memory(kept, dtype)


def _is_inside(name: str, blocks: Collection[str]) -> bool:
    return any(name.startswith(f"{block}.") for block in blocks)


def _too_little(folder: Path, limit: int, outside: int, blocks: Sequence[BlockSizes]) -> OutOfMemoryError:
    layer = max(block.weights for block in blocks) + max(block.working for block in blocks)
    needed = -(-(outside + layer) // MEGABYTE) * MEGABYTE
    return OutOfMemoryError(
        f"--max-memory {format_bytes(limit)} is too little for {folder}: one layer takes {format_bytes(layer)}, "
        f"embedding, output head, final norm and what computing takes besides {format_bytes(outside)}; "
        f"{format_bytes(needed)} are needed.",
        f"Give --max-memory {needed // MEGABYTE}M or more, or a folder with fewer bits per weight "
        "(`python -m chatglm quantize`).",
    )
