"""The kernels compiled for cards that are not there: nothing spilled, memory that fits, matrix instructions, counts."""

from __future__ import annotations

import re
from importlib.metadata import version

import pytest

pytest.importorskip("triton")

from chatglm.kernels.triton.extraction_kernels import compress_kernel, extract_kernel
from chatglm.kernels.triton.matmul_kernels import product_kernel, sum_kernel
from chatglm.kernels.triton.matmul_tiles import TILES, Tile, num_splits, tile_for
from tests.kernels.triton.compiling import (
    ARCHITECTURES,
    SHARED_LIMITS,
    Compiled,
    by_architecture,
    compile_kernel,
    count,
)

WEIGHT = 4096  # rows and columns
# Bytes. Before 3.7 the tile of 32 tokens spills six registers on a B200.
MOST_STACK = 24 if version("triton").startswith("3.6.") else 0
# Instructions per weight that a Hopper card can issue while it reads weights at 4.3 TB/s: 3.9 for int4, 7.8 for int8.
# Four bits in bfloat16 need a shift more, eight bits three instructions more.
MOST = {(4, "fp16"): 2.2, (4, "bf16"): 2.4, (8, "fp16"): 2.6, (8, "bf16"): 3.4}


def product(
    architecture: int,
    bits: int,
    kind: str,
    tile: Tile,
    *,
    splits: int = 1,
    group_size: int = 0,
    columns: int = WEIGHT,
    epilogue: bool = False,
) -> Compiled:
    """The product kernel as `launch_product` would ask for it."""
    signature = {"x": f"*{kind}", "weight": "*i8", "scale": "*fp16", "y": f"*{kind}", "M": "i32"}
    constants = {
        "N": WEIGHT,
        "ROW_BYTES": columns * bits // 8,
        "BITS": bits,
        "GROUP_BYTES": group_size * bits // 8,
        "BM": tile.tokens,
        "BN": tile.rows,
        "BK": tile.num_bytes,
        "SPLITS": splits,
        "GELU": epilogue,
        "ASM": True,
    }
    if epilogue:
        signature["bias"] = f"*{kind}"
    else:
        constants["bias"] = None
    options = {"num_warps": tile.num_warps, "num_stages": tile.num_stages}
    return compile_kernel(product_kernel, architecture, signature, constants, **options)


def instructions_per_weight(compiled: Compiled, tile: Tile) -> float:
    """Of one lane, counted by the weights that the loop's matrix instructions multiply."""
    weights = 0.0
    for line in compiled.loop:
        if found := re.search(r"\bHMMA\.16(8)(8|16)\.", line):
            weights += tile.num_warps * 16 * int(found[2]) * 8 / tile.tokens
        elif found := re.search(r"\bHGMMA\.64x(\d+)x16", line):  # of four warps together
            weights += tile.num_warps / 4 * 64 * 16 * int(found[1]) / tile.tokens
    return len(compiled.loop) * tile.num_warps * 32 / weights


def assert_fits(compiled: Compiled, architecture: int) -> None:
    assert compiled.stack <= MOST_STACK
    assert compiled.shared <= SHARED_LIMITS[architecture]
    assert any(count(compiled.sass, name) for name in ("HMMA", "HGMMA", "UTC"))
    assert count(compiled.sass, "LDGSTS")


@pytest.mark.slow
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    ("architecture", "kind"),
    by_architecture(*((architecture, "fp16") for architecture in ARCHITECTURES), (80, "bf16"), (90, "bf16")),
)
def test_few_tokens(architecture: int, bits: int, kind: str) -> None:
    """The tile of a conversation: what it costs to unpack a weight is what decides."""
    tile = tile_for(1, bits)
    compiled = product(architecture, bits, kind, tile)
    assert_fits(compiled, architecture)
    assert instructions_per_weight(compiled, tile) <= MOST[bits, kind]


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "bits", "tile"), by_architecture(
    *((90, bits, tile) for bits in (4, 8) for tile in TILES[bits][1:]),
    *((architecture, 4, TILES[4][-1]) for architecture in (80, 100, 120)),
    *((architecture, 4, TILES[4][-2]) for architecture in (86, 100)),
), ids=str)  # fmt: skip
def test_more_tokens(architecture: int, bits: int, tile: Tile) -> None:
    """Every tile on Hopper, and those with the most registers where they are fewest to spare."""
    assert_fits(product(architecture, bits, "fp16", tile), architecture)


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["fp16", "bf16"])
@pytest.mark.parametrize(("bits", "tile"), [(bits, tile) for bits in TILES for tile in TILES[bits]], ids=str)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_tile_everywhere(architecture: int, bits: int, tile: Tile, kind: str) -> None:
    assert_fits(product(architecture, bits, kind, tile), architecture)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [{"splits": 4}, {"epilogue": True}, {"columns": 13696, "splits": 2}, {"group_size": 128}],
    ids=str,
)
def test_what_else_a_launch_can_ask_for_costs_little(case: dict[str, int]) -> None:
    tile = tile_for(1, 4, case.get("group_size", 0))
    compiled = product(90, 4, "fp16", tile, **case)
    assert_fits(compiled, 90)
    assert instructions_per_weight(compiled, tile) <= 2.4


def test_a_row_that_ends_within_a_turn_compiles() -> None:
    assert product(90, 4, "fp16", tile_for(1, 4), columns=200).stack == 0


@pytest.mark.parametrize("architecture", by_architecture(80, 120))
def test_the_kernels_beside_move_16_bytes_at_a_time(architecture: int) -> None:
    extract = {"packed": "*i8", "scale": "*fp16", "y": "*fp16", "row_bytes": "i32"}
    constants = {"BITS": 4, "GROUP_BYTES": 0, "BLOCK": 1024}
    written_out = compile_kernel(extract_kernel, architecture, extract, constants, divisible=["row_bytes"])
    compress = {"integers": "*i8", "packed": "*i8", "size": "i32"}
    packed = compile_kernel(compress_kernel, architecture, compress, {"BLOCK": 1024}, divisible=["size"])
    summed = compile_kernel(
        sum_kernel,
        architecture,
        {"parts": "*fp32", "y": "*fp16", "M": "i32"},
        {"bias": None, "N": WEIGHT, "SPLITS": 4, "GELU": False, "BLOCK": 512},
    )
    assert written_out.stack == packed.stack == summed.stack == 0
    assert count(written_out.sass, r"STG\.E\.128")
    assert count(packed.sass, r"LDG\.E\.128")
    assert count(summed.sass, r"LDG\.E\.128") == 4


@pytest.mark.parametrize(
    ("num_tokens", "num_rows", "num_columns", "splits"),
    [(1, 4096, 4096, 4), (1, 12288, 4096, 1), (1, 16384, 4096, 1), (1, 4096, 16384, 4), (1, 130528, 4096, 1),
     (64, 4096, 4096, 8), (256, 16384, 4096, 1), (1, 8, 128, 1), (1, 4096, 1024, 1)],
)  # fmt: skip
def test_parts_fill_the_card_and_stay_long(num_tokens: int, num_rows: int, num_columns: int, splits: int) -> None:
    assert num_splits(num_tokens, num_rows, num_columns // 2, tile_for(num_tokens, 4)) == splits
