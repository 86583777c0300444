"""Every file of numerics, in Triton's interpreter and on a card."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.quantization.kernels.gpu.numerics import FILES, run

pytest.importorskip("triton")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_in_the_interpreter(file: Path) -> None:
    run(file, interpreted=True)


@pytest.mark.gpu
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_on_a_card(file: Path) -> None:
    run(file, interpreted=False)
