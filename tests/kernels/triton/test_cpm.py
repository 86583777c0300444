"""Launching PTX through cpm_kernels: what is handed over, to a stand-in; without it, nothing breaks."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from chatglm.kernels.triton import cpm, weight_extraction
from tests.kernels.cases import random_product

CARD = torch.device("cuda", 0)
FACTS = json.loads((cpm.FOLDER / "facts.json").read_text())


@pytest.fixture(autouse=True)
def nothing_loaded() -> Iterator[None]:
    cpm._functions.cache_clear()
    yield
    cpm._functions.cache_clear()


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What a cpm_kernels that is only names was asked to launch; the card is a processor here."""
    found: list[dict[str, Any]] = []

    class KernelFunction:
        def __init__(self, module: bytes, name: str) -> None:
            self.code, self.name = module, name

        def __call__(self, grid: object, block: object, shared: int, stream: Any, arguments: list[Any]) -> None:
            values = [argument.value for argument in arguments]
            launch = {"grid": grid, "block": block, "shared": shared, "stream": stream.value, "arguments": values}
            found.append({"code": self.code, "name": self.name, **launch})

    base = ModuleType("cpm_kernels.kernels.base")
    base.__dict__.update(KernelFunction=KernelFunction, LazyKernelCModule=lambda code: code)
    for name in ("cpm_kernels", "cpm_kernels.kernels"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, base.__name__, base)
    monkeypatch.setattr(cpm, "is_available", lambda device: bool(cpm._functions()))
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=77))
    return found


@pytest.mark.parametrize("bits", [4, 8])
def test_what_is_launched(launches: list[dict[str, Any]], bits: int) -> None:
    case = random_product(1, 5, 4096, bits, half=True)
    name = f"int{bits}WeightExtractionHalf"
    y = getattr(weight_extraction, name)(case.weight, case.scale)
    (launch,) = launches
    row_bytes = 4096 * bits // 8
    assert launch["code"] == (cpm.FOLDER / f"extract_int{bits}.ptx").read_bytes()
    assert f".entry {launch['name']}(".encode() in launch["code"]
    assert launch["grid"] == (5, row_bytes // 1024, 1)
    assert launch["block"] == (FACTS[str(bits)]["threads"], 1, 1)
    assert (launch["shared"], launch["stream"]) == (FACTS[str(bits)]["shared"], 77)
    places = [tensor.data_ptr() for tensor in (case.weight, case.scale, y)]
    assert launch["arguments"] == [*places, row_bytes, None, None]
    assert (y.shape, y.dtype) == ((5, 4096), torch.float16)
    # The code takes as many arguments as it gets.
    assert launch["code"].count(b".param .") == len(launch["arguments"])


def test_what_the_code_does_not_do_is_left_to_torch(launches: list[dict[str, Any]]) -> None:
    for case in (
        random_product(1, 4, 72, 4, half=True),  # a row of 36 bytes
        random_product(1, 4, 64, 4),  # a float32 scale
        random_product(1, 4, 64, 4, half=True, group_size=32),
    ):
        assert weight_extraction.int4WeightExtractionHalf(case.weight, case.scale).isfinite().all()
    case = random_product(1, 4, 64, 4, half=True)
    assert weight_extraction.int4WeightExtractionFloat(case.weight, case.scale).isfinite().all()
    assert not launches


@pytest.mark.parametrize("error", [ImportError("No module named 'pkg_resources'"), RuntimeError("no driver")], ids=str)
def test_one_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    class Broken:
        def find_spec(self, name: str, *_: object) -> None:
            if name.startswith("cpm_kernels"):
                raise error

    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert not cpm.is_available(CARD)


def test_a_card_that_is_too_old(monkeypatch: pytest.MonkeyPatch, launches: list[dict[str, Any]]) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    assert not cpm.is_available(CARD)


@pytest.mark.parametrize("bits", [4, 8])
def test_the_code_is_what_the_kernels_compile_to(bits: int) -> None:
    """Where the Triton that wrote it is installed; otherwise `python -m tools.write_ptx` may write other registers."""
    triton = pytest.importorskip("triton")
    from tools.write_ptx import compile_ptx

    code, facts = compile_ptx(bits)
    assert facts == FACTS[str(bits)]
    if triton.__version__ == FACTS["triton"]:
        assert code == (cpm.FOLDER / f"extract_int{bits}.ptx").read_text()


@pytest.mark.parametrize("architecture", [75, 80, 90, 120])
@pytest.mark.parametrize("bits", [4, 8])
def test_the_code_assembles_for_later_cards(bits: int, architecture: int, tmp_path: Path) -> None:
    """As the driver would on the card."""
    triton = pytest.importorskip("triton")
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    file = cpm.FOLDER / f"extract_int{bits}.ptx"
    subprocess.run([tool, f"-arch=sm_{architecture}", file, "-o", tmp_path / "out"], check=True)
