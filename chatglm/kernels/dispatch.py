"""Which kernels multiply with packed weights on the CPU; selected once, for the whole process, at the first use.

native      the C library, activations rounded to int8 in groups: the default, and the fastest
exact       the C library, activations as they are
torch       torch's own operators, in bfloat16: without a C compiler
reference   the weight written out, then multiplied: slow, the truth, and on GPUs too
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from chatglm.errors import InvalidRequestError
from chatglm.kernels import reference
from chatglm.kernels.cpu import build, self_test, torch_matmul
from chatglm.kernels.cpu.cpu_matmul import NativeKernels
from chatglm.kernels.cpu.library import open_library

logger = logging.getLogger(__name__)

NAMES = ("reference", "torch", "native", "exact")
VARIABLE = "CHATGLM_KERNEL"


@dataclass(frozen=True)
class Backend:
    """A name and its product, called as `chatglm.kernels.linear`."""

    name: str
    linear: Callable[[Tensor, Tensor, Tensor, int, Tensor | None], Tensor]


class _State:
    """What this process has chosen and loaded."""

    backend: Backend | None = None
    native: NativeKernels | None = None
    has_tried_native = False
    lock = threading.RLock()


def current() -> Backend:
    """The kernels in use; the first call may compile. Raises InvalidRequestError for a wrong $CHATGLM_KERNEL."""
    if _State.backend is None:
        with _State.lock:
            if _State.backend is None:
                _State.backend = _named(os.environ.get(VARIABLE) or "native", VARIABLE)
    return _State.backend


def is_reference() -> bool:
    """Whether the reference was asked for, which then holds for GPUs as well; chooses and compiles nothing."""
    chosen = _State.backend
    return (os.environ.get(VARIABLE) if chosen is None else chosen.name) == "reference"


@contextmanager
def use(name: str) -> Iterator[str]:
    """Use the kernels of that name in all threads while the block runs; yields the name of those really used.

    For tests and benchmarks. Raises InvalidRequestError for an unknown name.
    """
    with _State.lock:
        before, _State.backend = _State.backend, _named(name, "The kernel")
    try:
        yield _State.backend.name
    finally:
        _State.backend = before


def native_kernels() -> NativeKernels | None:
    """The native library, compiled, loaded and tested at the first call; None where that fails, with one log line."""
    if _State.native is not None:
        return _State.native
    with _State.lock:
        if not _State.has_tried_native:
            _State.has_tried_native = True
            try:
                _State.native = _load_native()
            except build.NoLibraryError as error:
                logger.warning("The fast CPU kernels are not used, torch's own operators are: %s", error)
        return _State.native


def _load_native() -> NativeKernels:
    kernels = NativeKernels(open_library(build.library_path()))
    if fault := self_test.find_fault(kernels):
        raise build.NoLibraryError(f"The compiled file does not pass its self-test ({fault}).")
    return kernels


def _named(name: str, what: str) -> Backend:
    if name not in NAMES:
        raise InvalidRequestError(f"{what} is {name!r}.", f"Use one of {', '.join(NAMES)}.")
    if name == "reference":
        return Backend(name, reference.linear)
    native = None if name == "torch" else native_kernels()
    if native is None:
        return Backend("torch", torch_matmul.linear)
    return Backend(name, native.linear_int8 if name == "native" else native.linear_float)
