"""Several single-threaded workers that train one model together.

On a machine with other users this is much faster than one process with several threads: threads wait for each other in
every operation, workers once per step. With one worker everything here does nothing.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import distributed


class Team:
    """What one worker knows of the others."""

    def __init__(self, rank: int, workers: int, meeting_file: str) -> None:
        self.rank, self.workers = rank, workers
        if workers > 1:
            distributed.init_process_group("gloo", f"file://{meeting_file}", rank=rank, world_size=workers)

    def average(self, weights: Sequence[torch.Tensor], elapsed: float) -> float:
        """Average the gradients of all workers in place; return their mean of `elapsed`, equal for all."""
        if self.workers == 1:
            return elapsed
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        flat = torch.cat([*(gradient.flatten() for gradient in gradients), torch.tensor([elapsed])])
        distributed.all_reduce(flat)
        flat /= self.workers
        parts = flat[:-1].split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))
        return float(flat[-1])

    def close(self) -> None:
        """Leave the team."""
        if self.workers > 1:
            distributed.destroy_process_group()


def run(work: Callable[[Team, Any], None], workers: int, argument: Any) -> None:
    """Call `work(team, argument)` in every worker and wait for all of them."""
    with tempfile.TemporaryDirectory() as folder:
        meeting_file = os.path.join(folder, "meeting")
        if workers == 1:
            work(Team(0, 1, meeting_file), argument)
        else:
            torch.multiprocessing.spawn(_worker, (work, workers, meeting_file, argument), nprocs=workers)


def _worker(rank: int, work: Callable[[Team, Any], None], workers: int, meeting_file: str, argument: Any) -> None:
    team = Team(rank, workers, meeting_file)
    work(team, argument)
    team.close()
