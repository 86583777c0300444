"""Random products, exact results, memory that ends where it says, and the native library."""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from chatglm.kernels import dispatch
from chatglm.kernels.cpu import build
from chatglm.kernels.cpu.cpu_matmul import NativeKernels, pack_weight
from chatglm.kernels.cpu.library import open_library
from chatglm.kernels.packing import dequantize
from chatglm.kernels.reference import rounded_activations

LIBC = ctypes.CDLL(None)
ISA_NAMES = ("scalar", "avx2", "avx512")
SANITIZED = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


@dataclass
class Product:
    """x [M, I], packed weight [O, I * bits / 8], its scale, bits and bias."""

    x: Tensor
    weight: Tensor
    scale: Tensor
    bits: int
    bias: Tensor | None

    @property
    def arguments(self) -> tuple[Tensor, Tensor, int, Tensor | None]:
        return self.weight, self.scale, self.bits, self.bias

    @property
    def exact_weight(self) -> Tensor:
        """[O, I] in float64; the product with the scale is exact in it."""
        integers = dequantize(self.weight, torch.ones(self.weight.shape[0]), self.bits, torch.float64)
        if self.scale.dim() == 1:
            return integers * self.scale.double()[:, None]
        return integers * self.scale.double().repeat_interleave(integers.shape[1] // self.scale.shape[1], dim=1)

    def exact(self, x: Tensor) -> Tensor:
        """x W^T + bias in float64; x as the kernel sees it."""
        result = x.double() @ self.exact_weight.T
        return result if self.bias is None else result + self.bias.double()

    def size(self, x: Tensor, *, as_int8: bool = False) -> Tensor:
        """The sum of the sizes of what is added, to which errors are relative.

        The integer kernels multiply int4 weights as w + 8 and take 8 times the activations off again.
        """
        weight = self.exact_weight.abs()
        if as_int8 and self.bits == 4:
            offset = Product(x, torch.full_like(self.weight, -0x78), self.scale, 4, None)  # nibbles -8 and -8
            weight = weight + offset.exact_weight.abs()
        result = x.double().abs() @ weight.T
        return result if self.bias is None else result + self.bias.double().abs()


def random_product(
    num_tokens: int,
    num_rows: int,
    num_columns: int,
    bits: int,
    *,
    group_size: int = 0,
    half: bool = False,
    bias: bool = True,
    seed: int = 0,
) -> Product:
    """Any bytes are weights, also those that no quantizer writes (-8, -128)."""
    generator = torch.Generator().manual_seed(seed)
    shape = (num_rows, num_columns // group_size) if group_size else (num_rows,)
    scale = torch.rand(shape, generator=generator) + 0.05
    return Product(
        torch.randn(num_tokens, num_columns, generator=generator),
        torch.randint(-128, 128, (num_rows, num_columns * bits // 8), generator=generator, dtype=torch.int8),
        scale.half() if half else scale,
        bits,
        torch.randn(num_rows, generator=generator) if bias else None,
    )


def assert_is_product(result: Tensor, product: Product, bound: float, *, as_int8: bool = False) -> None:
    """result = x W^T + bias to `bound` times `Product.size`, x rounded to int8 in groups or as it is."""
    x = rounded_activations(product.x) if as_int8 else product.x.double()
    exact, size = product.exact(x), product.size(x, as_int8=as_int8) + 1e-37
    assert result.shape == exact.shape
    error = (result.double() - exact).abs() / size
    assert bool((error <= bound).all()), float(error.max())


def is_sanitized() -> bool:
    """Whether this run means to test a build with sanitizers; the process must have their libraries already."""
    return os.environ.get("CHATGLM_TEST_SANITIZED") == "1"


@functools.cache
def native() -> NativeKernels:
    """The library of this tree; only a machine without a C compiler skips."""
    try:
        compiler = build.find_compiler()
    except build.NoLibraryError as error:
        pytest.skip(str(error))
    if not is_sanitized():
        return NativeKernels(open_library(build.library_path()))
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "FLAGS", (*build.FLAGS, *SANITIZED))
        build.compile_library(compiler, Path(folder) / "kernels.so")
        return NativeKernels(open_library(Path(folder) / "kernels.so"))


@contextmanager
def instruction_set(isa: int) -> Iterator[None]:
    """The kernels of one instruction set, or the test is skipped."""
    library = native().library
    if isa > library.chatglm_best_isa():
        pytest.skip(f"This processor has no {ISA_NAMES[isa]}.")
    library.chatglm_use_isa(isa)
    try:
        assert library.chatglm_isa() == isa
        yield
    finally:
        library.chatglm_use_isa(len(ISA_NAMES) - 1)


def multiply(function: Callable[..., int], product: Product, threads: int = 1) -> Tensor:
    """One of the library's products; every tensor ends at a page that must not be touched, the result is poisoned."""
    x, weight, scale = guarded(product.x), guarded(product.weight), guarded(product.scale)
    bias = None if product.bias is None else guarded(product.bias)
    result = guarded(torch.full((x.shape[0], weight.shape[0]), torch.nan))
    packed = pack_weight(weight, scale, product.bits, bias)
    assert function(result.data_ptr(), x.data_ptr(), x.shape[0], packed, threads) == 0
    return result.clone()


def guarded(tensor: Tensor) -> Tensor:
    """A copy of `tensor` whose last byte is the last before a page without any access."""
    size = tensor.numel() * tensor.element_size()
    room = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    pages = mmap.mmap(-1, room + mmap.PAGESIZE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    no_access = 0
    assert LIBC.mprotect(ctypes.c_void_p(start + room), mmap.PAGESIZE, no_access) == 0
    copy = torch.frombuffer(pages, dtype=tensor.dtype, count=tensor.numel(), offset=room - size).view(tensor.shape)
    return copy.copy_(tensor)


@contextmanager
def fresh_choice(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a process that has not chosen its kernels yet."""
    with monkeypatch.context() as patch:
        for name, value in {"backend": None, "native": None, "has_tried_native": False}.items():
            patch.setattr(dispatch._State, name, value)
        yield
