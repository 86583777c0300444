"""GPTQ over a whole network: each block is rounded by the inputs that the rounded blocks before it give.

In memory are one block in float32, H of its layers, and the activations: 4 bytes * C for each token.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from chatglm.checkpoints.validate import ValidationReport
from chatglm.conversion.blockwise import Activations, BlockwiseNetwork
from chatglm.conversion.plan import Packing, PackingPlan
from chatglm.conversion.report import LayerErrors
from chatglm.conversion.rounding import relative
from chatglm.conversion.samples import Sample, count_tokens
from chatglm.kernels.packing import dequantize, quantize_rows
from chatglm.progress import Progress
from chatglm.quantization.gptq import InputMoments, Rounded, quantize_by_inputs

MIN_TOKENS = 256


@dataclass(frozen=True)
class Calibration:
    """GPTQ's text and a note on it, damping (None = chosen in `quantize_by_inputs`), and device."""

    samples: Sequence[Sample]
    damping: float | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    note: Mapping[str, Any] = field(default_factory=dict)

    def settings(self) -> dict[str, Any]:
        return {**self.note, "calibration_tokens": count_tokens(self.samples)}


def calibrated_tensors(
    report: ValidationReport,
    plan: PackingPlan,
    calibration: Calibration,
    errors: list[LayerErrors],
    progress: Progress | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """The packed linear layers of all blocks with their scales; their errors are appended to `errors`.

    Raises InvalidRequestError if the network gives NaN or infinity for this text.
    """
    with BlockwiseNetwork(report, calibration.device) as network:
        samples = network.begin(calibration.samples)
        num_done = 0
        for number in range(network.num_blocks):
            start = f"{plan.spec.layers}.{number}."
            packings = {
                name.removeprefix(start).removesuffix(".weight"): packing
                for name, packing in plan.packings.items()
                if name.startswith(start)
            }
            with network.block(number) as block:
                moments = _observe(network, number, block, list(packings), samples)
                for layer_name, packing in packings.items():
                    name = f"{start}{layer_name}.weight"
                    weight, inputs = network.stored_weight(name), moments.pop(layer_name)
                    rounded = quantize_by_inputs(weight, inputs, packing.bits, packing.group_size, calibration.damping)
                    errors.append(_errors(name, weight, inputs.sum_II, packing, rounded))
                    layer = cast(nn.Linear, block.get_submodule(layer_name))
                    layer.weight.copy_(dequantize(rounded.packed, rounded.scale, packing.bits, torch.float32))
                    yield name, rounded.packed.cpu()
                    yield f"{name}_scale", rounded.scale.cpu()
                    num_done += 1
                    if progress is not None:
                        progress(num_done, len(plan.linears))
                network.advance(number, block, samples)


def _observe(
    network: BlockwiseNetwork, number: int, block: nn.Module, names: Sequence[str], samples: Sequence[Activations]
) -> dict[str, InputMoments]:
    moments = {}
    with ExitStack() as hooks:
        for name in names:
            layer = block.get_submodule(name)
            moments[name] = InputMoments(cast(int, layer.in_features), network.device)
            add = partial(_add_inputs, moments[name])
            hooks.enter_context(layer.register_forward_pre_hook(add))
        for sample in samples:
            network.run(number, block, sample)
    return moments


def _add_inputs(moments: InputMoments, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    moments.add(inputs[0])


def _errors(name: str, weight_OI: Tensor, moments_II: Tensor, packing: Packing, rounded: Rounded) -> LayerErrors:
    nearest = quantize_rows(weight_OI, packing.bits, packing.group_size)
    weight_OI = weight_OI.float()
    whole = _energy(weight_OI, moments_II)

    def lost(packed: Tensor, scale: Tensor) -> Tensor:
        return dequantize(packed, scale, packing.bits, torch.float32).sub_(weight_OI)

    difference = lost(rounded.packed, rounded.scale)
    return LayerErrors(
        name,
        weight=relative(float(difference.norm()) ** 2, float(weight_OI.norm()) ** 2),
        output=relative(_energy(difference, moments_II), whole),
        output_if_rounded=relative(_energy(lost(*nearest), moments_II), whole),
        damping=rounded.damping,
    )


def _energy(weight_OI: Tensor, moments_II: Tensor) -> float:
    """Sum of squares of the outputs of a weight over all inputs: the trace of W H W^T."""
    rows_at_once = max(1, 2**24 // weight_OI.shape[1])
    return sum(float(((rows @ moments_II) * rows).sum()) for rows in weight_OI.split(rows_at_once))
