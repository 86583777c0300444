"""Compiling a Triton kernel for a card that is not there, and what its machine code then shows.

For another test file:

    compiled = compile_kernel(module.kernel, 90, {"x": "*fp16", "length": "i32"}, {"BLOCK": 64}, num_warps=2)
    assert compiled.stack == 0 and compiled.shared <= SHARED_LIMITS[90] and count(compiled.sass, "HMMA")
    assert len(compiled.loop) / weights_of_a_thread <= 2.2

Arguments come in the order of the signature; those that are not in it are constants. Pointers are promised to be
divisible by 16, as torch's allocations are, and so are the numbers named in `divisible`: without the promise loads go
element by element and no count means anything. $TRITON_INTERPRET must not be set in this process.

Numerics run elsewhere, see numerics.py.
"""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

# Cards: A100, RTX 30, RTX 40, H100 and H200, B200, RTX 50. Bytes of shared memory that one block can have.
SHARED_LIMITS = {80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}
# One before and one from Hopper on, whose matrix instructions differ; the others take as long again.
USUAL = (80, 90)


def by_architecture(*cases: Any) -> list[Any]:
    """Parameters, alone or in tuples that begin with an architecture; those of unusual ones are marked `slow`."""
    usual = [(case[0] if isinstance(case, tuple) else case) in USUAL for case in cases]
    values = [case if isinstance(case, tuple) else (case,) for case in cases]
    marks = [() if one else pytest.mark.slow for one in usual]
    return [pytest.param(*value, marks=mark) for value, mark in zip(values, marks, strict=True)]


ARCHITECTURES = tuple(SHARED_LIMITS)
INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(.*?);")
LABEL = re.compile(r"^\s*(\.L\w+):")
BRANCH = re.compile(r"\bBRA(?:\.\w+)*\s.*?`\((\.L\w+)\)")


@dataclass(frozen=True)
class Compiled:
    """One kernel for one architecture.

    Attributes:
        registers: of a thread.
        stack: bytes of local memory of a thread; other than 0 means that registers were spilled.
        shared: bytes of shared memory of a block.
        ptx: the virtual code.
        sass: the machine code, an instruction a line.
        loop: the part of `sass` that is the longest loop: what a thread runs in one turn. One turn may be several of
            the source's, because ptxas unrolls; count its products to know how many.
    """

    registers: int
    stack: int
    shared: int
    ptx: str
    sass: tuple[str, ...]
    loop: tuple[str, ...]


def count(code: tuple[str, ...], operation: str) -> int:
    """Instructions whose name begins so, e.g. HMMA, HGMMA (matrix products), LDGSTS (asynchronous copies)."""
    return sum(re.match(rf"(@!?U?P\w+\s+)?{operation}", line) is not None for line in code)


def compile_kernel(
    function: Any,
    architecture: int,
    signature: Mapping[str, str],
    constants: Mapping[str, object],
    *,
    divisible: Collection[str] = (),
    **options: Any,
) -> Compiled:
    """Compile a @triton.jit function; nothing is asked of a driver.

    Args:
        function: the function.
        architecture: 80, 86, 89, 90, 100 or 120.
        signature: name to type ("*fp16", "*i8", "i32", "fp32", ...) of every argument that is no constant.
        constants: name to value of every tl.constexpr.
        divisible: numbers that are promised to be divisible by 16, beside all pointers.
        options: num_warps, num_stages and the like.
    """
    names = list(function.arg_names)
    types = {name: signature.get(name, "constexpr") for name in names}
    promised = [name for name in names if types[name].startswith("*") or name in divisible]
    source = ASTSource(
        function,
        signature=types,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in promised},
    )
    with contextlib.redirect_stdout(io.StringIO()):  # an error of ptxas prints the whole code
        compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    return _examined(compiled.asm["cubin"], compiled.asm["ptx"], compiled.metadata.shared)


def _examined(cubin: bytes, ptx: str, shared: int) -> Compiled:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        usage = _run("cuobjdump", "-res-usage", str(file))
        lines = _run("nvdisasm", "-c", str(file)).splitlines()
    found = {name: int(value) for name, value in re.findall(r"(REG|STACK):(\d+)", usage)}
    sass, loop = _read_code(lines)
    return Compiled(found["REG"], found["STACK"], shared, ptx, sass, loop)


def _read_code(lines: list[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    sass: list[str] = []
    labels: dict[str, int] = {}
    loop: list[str] = []
    for line in lines:
        if label := LABEL.match(line):
            labels[label[1]] = len(sass)
        if instruction := INSTRUCTION.match(line):
            sass.append(instruction[2].partition("&")[0].strip())  # some versions print scheduling behind it
            target = BRANCH.search(sass[-1])
            if target and target[1] in labels:  # backwards; forward labels are not known yet
                loop = max(loop, sass[labels[target[1]] :], key=len)
    # Behind the end of every kernel a branch to itself stands; it is no loop.
    return tuple(sass), tuple(loop) if len(loop) > 1 else ()


def _run(tool: str, *arguments: str) -> str:
    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / tool
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=True).stdout
