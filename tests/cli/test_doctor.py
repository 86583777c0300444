"""`python -m chatglm doctor`: the number of parameters of a packed folder."""

from __future__ import annotations

import io
import os
import sys
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


def test_names_that_are_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The byte ff in the name of a folder, and streams that take whole characters only."""
    folder = tmp_path / os.fsdecode(b"model-\xff")
    make_folder(folder)
    (folder / "config.json").write_text("{")
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="strict") for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    codes = [
        main(["doctor", str(folder)]),
        main(["convert", str(folder), str(tmp_path / "to")]),
        main(["quantize", str(folder), str(tmp_path / "to")]),
    ]
    texts = []
    for stream in streams:
        stream.flush()
        texts.append(stream.buffer.getvalue().decode())  # type: ignore[attr-defined]
    assert codes == [1, 1, 1]
    assert "model-? cannot be loaded" in texts[0]
    assert texts[1].count("udcff") == 2
