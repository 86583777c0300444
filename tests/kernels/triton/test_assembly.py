"""The assembly that unpacks weights, run in Python for every byte in every place of a word."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

import chatglm.kernels.triton
from chatglm.kernels.packing import unpack_int4
from tests.kernels.triton.assembly import TYPES, Assembly, blocks_of, numbers_of, run

FILE = Path(chatglm.kernels.triton.__file__).with_name("unpack.py")
BLOCKS = blocks_of(FILE)


def type_of(assembly: Assembly) -> torch.dtype:
    return TYPES["bf16x2" if "bf16x2" in assembly.code else "f16x2"]


def test_there_is_one_for_each_width_and_type() -> None:
    found = {(assembly.function, type_of(assembly)) for assembly in BLOCKS}
    assert found == {(name, dtype) for name in ("unpack_int4", "unpack_int8") for dtype in TYPES.values()}


@pytest.mark.parametrize("assembly", BLOCKS, ids=lambda assembly: f"{assembly.function}-{type_of(assembly)}")
def test_every_byte_in_every_place(assembly: Assembly) -> None:
    """Neighbours are random: a byte must not reach into them."""
    generator = random.Random(0)
    for byte in range(256):
        for place in range(4):
            numbers = bytes(byte if i == place else generator.randrange(256) for i in range(4))
            result = numbers_of(run(assembly, int.from_bytes(numbers, "little")), type_of(assembly))
            packed = torch.tensor(list(numbers), dtype=torch.uint8).view(torch.int8)
            if assembly.function == "unpack_int4":
                integers = unpack_int4(packed)
                expected = [*integers[0::2].tolist(), *integers[1::2].tolist()]
            else:
                expected = packed.tolist()
            assert result == expected, numbers.hex()
