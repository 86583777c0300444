"""Steps of fixed shape, captured once and replayed: one launch from the host in the place of some hundred.

Knows: CUDA graphs, and that elsewhere a replay is just a call. Does not know what a step does.
A captured step always reads and writes the same tensors; whoever owns them fills them before a replay.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch

# Runs before a capture: kernels are compiled and libraries make their work space.
NUM_WARM_UPS = 2


class Graphs:
    """Graphs by key, in one pool of memory: only one of them runs at a time."""

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}
        self._pool: Any = None

    def needs(self, key: Hashable) -> bool:
        """Whether a step of that key is still to be captured; never, off CUDA."""
        return self._is_cuda and key not in self._graphs

    def capture(self, key: Hashable, step: Callable[[], None]) -> None:
        """Run a step a few times and record it, on the current CUDA device."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(NUM_WARM_UPS):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        # Other threads of the process may go on with the device meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            step()
        self._graphs[key] = graph

    def replay(self, key: Hashable, step: Callable[[], None]) -> None:
        """Run the step once more: its graph, or itself if there is none."""
        if key in self._graphs:
            self._graphs[key].replay()
        else:
            step()
