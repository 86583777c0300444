"""Time and memory of a run, estimated before it starts from one step that is tried."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from chatglm.sizes import format_bytes

FLOAT_BYTES = 4


@dataclass(frozen=True)
class Forecast:
    """Estimate for a run.

    Attributes:
        num_trained: parameters that are trained.
        num_all: parameters of the network; packed ones count as if they were not packed.
        state_bytes: gradients and the optimizer's two moments.
        peak_bytes: largest memory so far, the tried step included: of the device, or of this process.
        seconds: of all steps.
    """

    num_trained: int
    num_all: int
    state_bytes: int
    peak_bytes: int
    seconds: float

    def __str__(self) -> str:
        share = 100 * self.num_trained / self.num_all
        return (
            f"Training {self.num_trained:,} of {self.num_all:,} parameters ({share:.2f} %); about "
            f"{format_bytes(self.peak_bytes + self.state_bytes)} of memory and {_duration(self.seconds)}."
        )


def forecast(network: Any, batch: Mapping[str, Tensor], num_batches: int) -> Forecast:
    """Try a step on `batch` and multiply by `num_batches`. Gradients and the random state are as before."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    num_trained = sum(parameter.numel() for parameter in trained)
    device = trained[0].device
    inputs = {name: value.to(device) for name, value in batch.items()}
    was_training = network.training
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        network.train()
        seconds = min(_try(network, inputs, device) for _ in range(2))  # the first also warms up
    for parameter in trained:
        parameter.grad = None
    network.train(was_training)
    return Forecast(
        num_trained=num_trained,
        num_all=count_parameters(network),
        state_bytes=2 * FLOAT_BYTES * num_trained,  # the gradients were there in the tried step
        peak_bytes=_peak(device),
        seconds=seconds * num_batches,
    )


def _try(network: Any, inputs: Mapping[str, Tensor], device: torch.device) -> float:
    began = time.perf_counter()
    network(**inputs).loss.backward()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def count_parameters(network: Any) -> int:
    """Parameters of a network, those of packed layers as if they were not packed."""
    packed = {f"{name}.weight": 8 // module.bits for name, module in network.named_modules() if hasattr(module, "bits")}
    return sum(
        parameter.numel() * packed.get(name, 1)
        for name, parameter in network.named_parameters()
        if not name.endswith("weight_scale")
    )


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        return 0
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    minutes = seconds / 60
    return f"{minutes:.0f} minutes" if minutes < 90 else f"{minutes / 60:.1f} hours"
