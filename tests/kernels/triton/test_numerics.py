"""Every file of numerics, in Triton's interpreter and on a card; all in one process, whose imports take longest."""

from __future__ import annotations

import pytest

from tests.kernels.triton.numerics import FILES, run

pytest.importorskip("triton")


def test_in_the_interpreter() -> None:
    run(FILES, interpreted=True)


@pytest.mark.gpu
def test_on_a_card() -> None:
    run(FILES, interpreted=False)
