"""Packing stored weights by rounding to nearest, some rows at a time, with the error that it makes."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator

import torch
from torch import Tensor

from chatglm.checkpoints import StoredTensor, WeightReader
from chatglm.conversion.plan import Packing, PackingPlan
from chatglm.conversion.report import LayerErrors
from chatglm.kernels.packing import dequantize, quantize_rows
from chatglm.progress import Progress


def rounded_tensors(
    reader: WeightReader,
    stored: dict[str, StoredTensor],
    plan: PackingPlan | None,
    errors: list[LayerErrors],
    left_out: Collection[str] = (),
    progress: Progress | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """The new folder's tensors but `left_out`, in the old order, packed as `plan` says; appends to `errors`."""
    wanted = {name: tensor for name, tensor in stored.items() if name not in left_out}
    num_read, num_all = 0, sum(tensor.size_bytes for tensor in wanted.values())
    for name, tensor in wanted.items():
        packing = plan.packings.get(name) if plan is not None else None
        if plan is None or packing is None:
            yield name, reader.read(name)
        else:
            packed, scale, error = round_stored(reader, name, packing)
            errors.append(LayerErrors(name, weight=error))
            yield name, packed
            yield f"{name}_scale", scale
            if name == plan.spec.embedding_weight and plan.copies_head:
                yield plan.spec.head_weight, packed.clone()
                yield f"{plan.spec.head_weight}_scale", scale.clone()
        reader.forget(name)
        num_read += tensor.size_bytes
        if progress is not None:
            progress(num_read, num_all)


def round_stored(reader: WeightReader, name: str, packing: Packing) -> tuple[Tensor, Tensor, float]:
    """A stored weight packed, its scales, and |dequantized - weight| / |weight|; some rows are in memory as floats."""
    packed, scales, lost, whole = [], [], 0.0, 0.0
    for block in reader.blocks(name):
        integers, scale = quantize_rows(block, packing.bits, packing.group_size)
        difference = dequantize(integers, scale, packing.bits, torch.float32).sub_(block)
        lost += float(difference.norm()) ** 2
        whole += float(torch.linalg.vector_norm(block, dtype=torch.float32)) ** 2
        packed.append(integers.clone())  # the block's memory is used again
        scales.append(scale)
    return torch.cat(packed), torch.cat(scales), relative(lost, whole)


def relative(lost: float, whole: float) -> float:
    """The square root of a ratio of sums of squares; 0 where both are 0."""
    return math.sqrt(lost / whole) if whole else (math.inf if lost else 0.0)
