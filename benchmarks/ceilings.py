"""The ceilings that a CPU sets: memory read per second, products of bytes per second.

Knows: compiling ceilings.c and calling it; without a compiler, torch's sum stands for the read loop. Does not know
models.
"""

from __future__ import annotations

import ctypes
import platform
import subprocess
import tempfile
import time
from pathlib import Path

import torch

from chatglm.checkpoints.huge_pages import new_tensor
from chatglm.kernels.cpu.build import NoLibraryError, find_compiler

READ_BYTES = 1 << 30
ROUNDS = 20_000_000


class Ceilings:
    """Measures at any moment of a run, since the memory of a shared machine is not always equally fast."""

    def __init__(self) -> None:
        self._bytes = new_tensor((READ_BYTES,), torch.uint8).fill_(1)
        self._library = _library() if platform.machine() in ("x86_64", "AMD64") else None

    def read_bytes_per_second(self) -> float:
        """Best of three passes over a gigabyte, by all of torch's threads."""
        return READ_BYTES / min(self._read_seconds() for _ in range(3))

    def int8_operations_per_second(self) -> float:
        """Multiplications and additions of bytes, of all threads together; 0 where there is no VNNI."""
        if self._library is None:
            return 0.0
        return max(float(self._library.int8_operations_per_second(ROUNDS, torch.get_num_threads())) for _ in range(3))

    def _read_seconds(self) -> float:
        if self._library is not None:
            seconds = self._library.read_seconds(self._bytes.data_ptr(), READ_BYTES, torch.get_num_threads())
            return float(seconds)
        start = time.perf_counter()
        self._bytes.view(torch.int64).sum().item()
        return time.perf_counter() - start


def _library() -> ctypes.CDLL | None:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "ceilings.so"
        source = str(Path(__file__).with_name("ceilings.c"))
        try:
            command = [*find_compiler().command, "-O3", "-shared", "-fPIC", "-fopenmp", source, "-o", str(target)]
            subprocess.run(command, check=True, capture_output=True)
            library = ctypes.CDLL(str(target))
        except (NoLibraryError, OSError, subprocess.CalledProcessError):
            return None
    library.read_seconds.restype = ctypes.c_double
    library.read_seconds.argtypes = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32)
    library.int8_operations_per_second.restype = ctypes.c_double
    library.int8_operations_per_second.argtypes = (ctypes.c_int64, ctypes.c_int32)
    return library
