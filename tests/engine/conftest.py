"""The kernels that small networks of tests of the engine are quickest with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from chatglm import kernels


@pytest.fixture(scope="module")
def plain_kernels() -> Iterator[None]:
    """Small products lose by a second thread, and integer kernels for CPUs keep a cache of their own type."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with kernels.use("reference"):
        yield
    torch.set_num_threads(before)
