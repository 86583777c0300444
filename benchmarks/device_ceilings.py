"""What a device could do at most, and time on it: copies, one large product, medians.

Knows: CUDA's events and captured graphs, and the host's clock elsewhere. Does not know models.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

NUM_REPLAYS = 10


@dataclass(frozen=True)
class DeviceCeilings:
    """Bytes per second that are read and written together, and operations per second of the matrix units."""

    bytes_per_s: float
    operations_per_s: float

    def floor(self, num_bytes: float, num_operations: float) -> float:
        """Seconds below which nothing that moves so many bytes and does so many operations can be."""
        return max(num_bytes / self.bytes_per_s, num_operations / self.operations_per_s)


def measure_ceilings(device: torch.device, dtype: torch.dtype) -> DeviceCeilings:
    """A copy and a square product, both large for the device."""
    is_cuda = device.type == "cuda"
    num_bytes, width = (1 << 32, 8192) if is_cuda else (1 << 27, 1024)
    source = torch.empty(num_bytes, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    seconds = time_of(lambda: target.copy_(source), device)
    a, b = (torch.randn(width, width, device=device).to(dtype) for _ in range(2))
    return DeviceCeilings(2 * num_bytes / seconds, 2 * width**3 / time_of(lambda: a @ b, device))


def time_of(run: Callable[[], object], device: torch.device, *, repeats: int = 10, warm_ups: int = 3) -> float:
    """Median seconds of a call, its work on the device included."""
    for _ in range(warm_ups):
        run()
    times = []
    for _ in range(repeats):
        wait(device)
        begun = time.perf_counter()
        run()
        wait(device)
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def time_in_graph(runs: Sequence[Callable[[], object]], device: torch.device) -> float:
    """Median seconds of one of several calls that follow one another, without the host between them (on CUDA)."""

    def all_of_them() -> None:
        for run in runs:
            run()

    if device.type != "cuda":
        return time_of(all_of_them, device, repeats=3, warm_ups=1) / len(runs)
    with torch.cuda.device(device):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            all_of_them()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            all_of_them()
        return statistics.median(_replay_seconds(graph) for _ in range(NUM_REPLAYS)) / len(runs)


def _replay_seconds(graph: torch.cuda.CUDAGraph) -> float:
    """Of a replay, by the device's own clock."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    # The device is busy with this one while the next is launched: that launch is not part of the time.
    graph.replay()
    begin.record()
    graph.replay()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def wait(device: torch.device) -> None:
    """Until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def release(device: torch.device) -> None:
    """Give back memory that nobody holds any more, so that what comes next finds the device as if it came first."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
