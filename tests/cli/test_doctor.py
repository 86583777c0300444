"""`python -m chatglm doctor`: the number of parameters of a packed folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from chatglm.__main__ import main
from tests.folders import make_folder


@pytest.mark.parametrize("flags", [["--bits", "4"], ["--bits", "8"], ["--bits", "4", "--embeddings"]])
def test_packing_does_not_change_the_number_of_parameters(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def num_parameters(folder: Path) -> str:
        assert main(["doctor", str(folder)]) == 0
        return next(line for line in capsys.readouterr().out.splitlines() if line.endswith(" parameters"))

    make_folder(tmp_path / "source")
    assert main(["quantize", str(tmp_path / "source"), str(tmp_path / "packed"), *flags]) == 0
    capsys.readouterr()
    assert num_parameters(tmp_path / "packed") == num_parameters(tmp_path / "source")
