"""Compiles the kernels that run without Triton to PTX: python -m tools.write_ptx, where Triton is installed.

No card is needed. The oldest target that has all we use serves every later card, and an old version of PTX old drivers.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from chatglm.kernels.triton.cpm import FOLDER
from chatglm.kernels.triton.extraction_kernels import extract_kernel

TARGET = GPUTarget("cuda", 75, 32)
PTX_VERSION = 70
BLOCK_BYTES = 1024
WARPS = 4
ARGUMENTS = {"packed": "*i8", "scale": "*fp16", "y": "*fp16", "row_bytes": "i32"}


def compile_ptx(bits: int) -> tuple[str, dict[str, int]]:
    """The code for half results and one scale per row, and what a launch must know."""
    names = extract_kernel.arg_names
    constants = {"BITS": bits, "GROUP_BYTES": 0, "BLOCK": BLOCK_BYTES}
    source = ASTSource(
        extract_kernel,
        signature={name: ARGUMENTS.get(name, "constexpr") for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in ARGUMENTS},
    )
    triton.knobs.compilation.disable_line_info = True
    compiled = triton.compile(source, target=TARGET, options={"num_warps": WARPS, "ptx_version": PTX_VERSION})
    code = re.sub(r"[ \t]*//.*", "", compiled.asm["ptx"])
    code = "\n".join(line for line in code.splitlines() if line.strip()) + "\n"
    facts = {"threads": WARPS * TARGET.warp_size, "shared": compiled.metadata.shared, "block_bytes": BLOCK_BYTES}
    return code, facts


def write(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    facts: dict[str, object] = {"name": "extract_kernel", "triton": triton.__version__}
    for bits in (4, 8):
        code, facts[str(bits)] = compile_ptx(bits)
        (folder / f"extract_int{bits}.ptx").write_text(code)
    (folder / "facts.json").write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    write(FOLDER)
