"""Every file of numerics, in Triton's interpreter and on a card; all in one process, whose imports take longest."""

from __future__ import annotations

import pytest

from tests.kernels.triton.numerics import FILES, run

pytest.importorskip("triton")


@pytest.mark.slow
@pytest.mark.parametrize("marked", ["not slow", "slow"])
def test_in_the_interpreter(marked: str) -> None:
    run(FILES, interpreted=True, marked=marked)


@pytest.mark.gpu
def test_on_a_card() -> None:
    run(FILES, interpreted=False)
