"""One thread, unless a test asks for more: these products are too small for two, and a busy machine makes two wait."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from chatglm.kernels import dispatch
from tests.kernels.cases import is_sanitized, native


@pytest.fixture(autouse=True, scope="session")
def sanitized_build() -> Iterator[None]:
    """Every test here meets the build with sanitizers where that is what is tested."""
    with pytest.MonkeyPatch.context() as patch:
        if is_sanitized():
            patch.setattr(dispatch, "native_kernels", native)
        yield


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
