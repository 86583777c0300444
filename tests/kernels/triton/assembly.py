"""The inline assembly of kernels, run in Python: as much of PTX as they use, on 32-bit words.

Arithmetic is done in float64, where it is exact, and rounded once, as the card does.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

TYPES = {"f16x2": torch.float16, "bf16x2": torch.bfloat16}


class Assembly(NamedTuple):
    """A block of inline assembly: the function it is in, its code, and how many registers it writes."""

    function: str
    code: str
    num_results: int


def blocks_of(file: Path) -> list[Assembly]:
    """Every call of `inline_asm_elementwise` in a source file."""
    found = []
    for function in (node for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef)):
        for call in (node for node in ast.walk(function) if isinstance(node, ast.Call)):
            if isinstance(call.func, ast.Attribute) and call.func.attr == "inline_asm_elementwise":
                code, constraints = (ast.literal_eval(argument) for argument in call.args[:2])
                found.append(Assembly(function.name, code, constraints.count("=")))
    return found


def run(assembly: Assembly, word: int) -> list[int]:
    """The words it writes for one word it reads."""
    registers = {f"${assembly.num_results}": word}
    for line in (part.strip() for part in assembly.code.strip("{} \n").split(";")):
        if not line or line.startswith(".reg"):
            continue
        name, _, operands = line.partition(" ")
        place, *sources = (operand.strip() for operand in operands.split(","))
        values = [registers[source] if source in registers else int(source, 0) for source in sources]
        operation, *_, kind = name.split(".")
        registers[place] = _execute(operation, kind, values)
    return [registers[f"${index}"] for index in range(assembly.num_results)]


def numbers_of(words: list[int], dtype: torch.dtype) -> list[float]:
    """Two numbers a word, the low half first."""
    halves = [half for word in words for half in (word & 0xFFFF, word >> 16)]
    return torch.tensor(halves, dtype=torch.int32).to(torch.int16).view(dtype).tolist()


def _execute(operation: str, kind: str, values: list[int]) -> int:
    if kind in TYPES:
        return _pairwise(lambda a, b, c=0.0: a * b + c if operation == "fma" else a + b, values, TYPES[kind])
    a, b, c = (*values, 0, 0)[:3]
    if operation == "prmt":
        pool = a.to_bytes(4, "little") + b.to_bytes(4, "little")
        return int.from_bytes(bytes(pool[c >> 4 * place & 7] for place in range(4)), "little")
    if operation == "lop3":
        table = values[3]
        bits = ((a >> i & 1) << 2 | (b >> i & 1) << 1 | (c >> i & 1) for i in range(32))
        return sum((table >> index & 1) << i for i, index in enumerate(bits))
    return {"mov": a, "and": a & b, "shr": a >> (b & 31)}[operation]


def _pairwise(function: Callable[..., float], values: list[int], dtype: torch.dtype) -> int:
    operands = [numbers_of([value], dtype) for value in values]
    results = torch.tensor([function(*numbers) for numbers in zip(*operands, strict=True)], dtype=torch.float64)
    low, high = (bits & 0xFFFF for bits in results.to(dtype).view(torch.int16).tolist())
    return high << 16 | low
