"""Tests of cards are skipped where there is none; by default they are not even collected."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def skip_without_card(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("There is no NVIDIA card.")
