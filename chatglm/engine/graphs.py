"""Steps of fixed shape on fixed tensors, captured once as CUDA graphs and replayed; elsewhere a replay is a call."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Any

import torch

logger = logging.getLogger(__name__)

# Runs before a capture: kernels are compiled and libraries make their work space.
NUM_WARM_UPS = 2


class Graphs:
    """Graphs by key, in one pool of memory: only one of them runs at a time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # None: its capture failed, and it is called.
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph | None] = {}
        self._pool: Any = None
        # One for all captures, or libraries would make a work space for each.
        self._stream: torch.cuda.Stream | None = None

    def needs(self, key: Hashable) -> bool:
        """Whether a step of that key is still to be captured; never, off CUDA."""
        return self._device.type == "cuda" and key not in self._graphs

    def capture(self, key: Hashable, step: Callable[[], None]) -> None:
        """Run a step a few times and record it on the current CUDA device; if that fails, replays just call it."""
        before = torch.cuda.current_stream()
        stream = self._stream = self._stream or torch.cuda.Stream()
        stream.wait_stream(before)
        with torch.cuda.stream(stream):
            for _ in range(NUM_WARM_UPS):
                step()
        before.wait_stream(stream)
        graph, pool = torch.cuda.CUDAGraph(), self._pool or torch.cuda.graph_pool_handle()
        try:
            # Other threads of the process may go on with the device meanwhile.
            with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                step()
        except Exception as error:
            logger.warning("A step of the network cannot be captured as a CUDA graph and runs without: %s", error)
            self._graphs[key] = None
            self._tidy_up(before, pool)
        else:
            self._graphs[key], self._pool = graph, pool

    def replay(self, key: Hashable, step: Callable[[], None]) -> None:
        graph = self._graphs.get(key)
        if graph is not None:
            graph.replay()
        else:
            step()

    def _tidy_up(self, stream: torch.cuda.Stream, pool: Any) -> None:
        """What torch leaves undone when the end of a capture fails: its stream is current, its pool in use."""
        torch.cuda.set_stream(stream)
        with suppress(Exception):  # in use no more, or a torch that names it otherwise
            torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)
