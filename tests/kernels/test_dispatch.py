"""Which kernels are used: what is asked for, and what takes its place."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from chatglm import kernels
from chatglm.errors import InvalidRequestError, OutOfMemoryError
from chatglm.kernels import dispatch
from chatglm.kernels.cpu import build, self_test
from chatglm.kernels.cpu.cpu_matmul import NativeKernels
from tests.kernels.cases import fresh_choice, native, random_product


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(dispatch.VARIABLE, raising=False)
    with fresh_choice(monkeypatch):
        yield


def test_native_is_the_default() -> None:
    native()
    assert kernels.backend_name() == "native"


@pytest.mark.parametrize("name", dispatch.NAMES)
def test_the_environment_chooses(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    native()
    monkeypatch.setenv(dispatch.VARIABLE, name)
    assert kernels.backend_name() == name


def test_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    native()
    monkeypatch.setenv(dispatch.VARIABLE, "")
    assert kernels.backend_name() == "native"


def test_a_wrong_name_is_rejected_with_the_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(dispatch.VARIABLE, "fast")
    for _ in range(2):
        with pytest.raises(InvalidRequestError, match=r"CHATGLM_KERNEL is 'fast'\. Use one of reference, torch, nat"):
            kernels.backend_name()
    with pytest.raises(InvalidRequestError, match="Native"), kernels.use("Native"):
        pass


def test_use_is_for_its_block() -> None:
    native()
    with kernels.use("reference") as name:
        assert name == kernels.backend_name() == "reference"
        with kernels.use("exact"):
            assert kernels.backend_name() == "exact"
        assert kernels.backend_name() == "reference"
    with pytest.raises(ZeroDivisionError), kernels.use("torch"):
        raise ZeroDivisionError
    assert kernels.backend_name() == "native"


@pytest.mark.parametrize("asked", [None, "native", "exact"])
def test_without_a_compiler_torch_takes_over_and_says_so_once(
    asked: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    if asked:
        monkeypatch.setenv(dispatch.VARIABLE, asked)
    for _ in range(3):
        assert kernels.backend_name() == "torch"
        with kernels.use("native") as name:
            assert name == "torch"
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "No C compiler" in record.getMessage()
    product = random_product(2, 16, 64, 4)
    assert kernels.linear(product.x, *product.arguments).shape == (2, 16)


@pytest.mark.parametrize("asked", ["torch", "reference"])
def test_what_needs_no_compiler_looks_for_none(
    asked: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(build, "library_path", lambda: pytest.fail("compiled for nothing"))
    with kernels.use(asked) as name:
        assert name == asked
    assert not caplog.records


def test_a_library_that_fails_its_test_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    native()
    monkeypatch.setattr(self_test, "BOUND", 0.0)
    assert kernels.backend_name() == "torch"
    assert "does not pass its self-test" in caplog.text
    assert len(caplog.records) == 1


@pytest.mark.parametrize("content", [b"not a library", None])
def test_a_file_that_is_no_such_library_is_not_used(
    content: bytes | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "other.so"
    if content is None:
        source = tmp_path / "other.c"
        source.write_text("int other(void) { return 1; }")
        native()
        monkeypatch.setattr(build, "sources", lambda: [source])
        build.compile_library(build.find_compiler(), path)
    else:
        path.write_bytes(content)
    monkeypatch.setattr(build, "library_path", lambda: path)
    assert kernels.backend_name() == "torch"
    assert "cannot be loaded" in caplog.text


def test_threads_choose_once(monkeypatch: pytest.MonkeyPatch) -> None:
    native()
    tests: list[str] = []
    find_fault = self_test.find_fault
    monkeypatch.setattr(self_test, "find_fault", lambda kernels: tests.append("") or find_fault(kernels))
    threads = [threading.Thread(target=kernels.backend_name) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(tests) == 1
    assert kernels.backend_name() == "native"


@pytest.mark.parametrize("function", ["chatglm_linear_int8", "chatglm_linear_float", "chatglm_dequantize"])
def test_the_self_test_sees_a_fault_in_each_function(function: str) -> None:
    """Every call gets a wrong weight: one column less in the struct, or a last row that is not written."""
    broken = _OneRowShort(native().library, function)
    assert self_test.find_fault(native()) == ""
    fault = self_test.find_fault(NativeKernels(broken))  # type: ignore[arg-type]
    assert {"chatglm_linear_int8": "int8", "chatglm_linear_float": "float", "chatglm_dequantize": "dequant"}[
        function
    ] in fault


class _OneRowShort:
    """A library one of whose functions adds a little to its first result."""

    def __init__(self, library: object, function: str) -> None:
        self._library, self._function = library, function

    def __getattr__(self, name: str) -> object:
        function = getattr(self._library, name)
        if name != self._function:
            return function

        def wrong(result: int, *arguments: object) -> int:
            import ctypes

            status = function(result, *arguments)
            ctypes.cast(result, ctypes.POINTER(ctypes.c_float))[0] += 1.0
            return status

        return wrong


def test_memory_that_runs_out_is_a_sentence() -> None:
    broken = NativeKernels(native().library)
    broken._linear_int8 = lambda *arguments: 1
    product = random_product(1, 4, 64, 4)
    with pytest.raises(OutOfMemoryError, match="Memory ran out"):
        broken.linear_int8(product.x, *product.arguments)


def test_other_devices_use_the_reference() -> None:
    product = random_product(2, 4, 64, 4)
    meta = [tensor.to("meta") for tensor in (product.x, product.weight, product.scale)]
    assert kernels.linear(*meta, 4).device.type == "meta"  # type: ignore[arg-type]


def test_one_openmp_for_torch_and_the_library() -> None:
    """Two would put twice as many threads on the processor."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("This system does not list the libraries of a process.")
    native()
    product = random_product(1, 300, 1024, 8)
    torch.set_num_threads(2)
    with kernels.use("native"):
        kernels.linear(product.x, *product.arguments)
    paths = {Path(line.split()[-1]) for line in maps.read_text().splitlines() if line.endswith((".so.1", ".so"))}
    names = [
        path for path in paths if path.name in ("libgomp.so.1", "libomp.so")
    ]  # other names are others' private copies
    assert len(names) == 1, names
