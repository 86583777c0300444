"""Which tile multiplies how many tokens, and into how many parts the columns are split.

Made for an H200 by counting instructions (docs/lab). A result must not depend on the card: all use this table.
"""

from __future__ import annotations

from dataclasses import dataclass

# From more tokens on, writing the weight out for one large matrix product costs less than unpacking it per tile.
MANY_TOKENS = 256
# A tile of two warps waits for bytes: three blocks for two of 132 processors keep enough of them in flight, and parts
# that need not be summed save a launch. One of four warps is busy with them: every processor has to have its two.
WANTED_BLOCKS = {2: 192, 4: 250}
# A part shorter than this many turns spends its time filling its pipeline.
MIN_TURNS = 4


@dataclass(frozen=True)
class Tile:
    """A block's share of a product: tokens of x, rows of the weight, bytes of each row in one iteration.

    Two warps use single-warp instructions, whose layout reads bytes well; four use Hopper's, which pay for many tokens.
    """

    tokens: int
    rows: int
    num_bytes: int
    num_warps: int
    num_stages: int


# By bits; each holds up to its number of tokens, the last for more.
TILES = {
    4: (Tile(8, 64, 128, 2, 4), Tile(16, 64, 64, 2, 4), Tile(32, 64, 64, 2, 4), Tile(64, 128, 32, 4, 4)),
    8: (Tile(8, 64, 128, 2, 4), Tile(16, 64, 128, 2, 4), Tile(32, 64, 64, 2, 4), Tile(64, 128, 64, 4, 4)),
}


def tile_for(num_tokens: int, bits: int, group_size: int = 0) -> Tile:
    """The tile of a product; a turn is one group of columns where weights have groups."""
    fitting = (tile for tile in TILES[bits] if num_tokens <= tile.tokens)
    tile = next(fitting, TILES[bits][-1])
    if not group_size:
        return tile
    # Short turns: more of them in flight.
    return Tile(tile.tokens, tile.rows, group_size * bits // 8, tile.num_warps, 6 if tile.tokens <= 16 else 4)


def num_splits(num_tokens: int, num_rows: int, row_bytes: int, tile: Tile) -> int:
    """1, 2, 4 or 8 parts of the columns: the fewest that fill a large card, as long as none gets too short."""
    blocks = -(-num_tokens // tile.tokens) * -(-num_rows // tile.rows)
    turns = -(-row_bytes // tile.num_bytes)
    splits = 1
    while splits < 8 and blocks * splits < WANTED_BLOCKS[tile.num_warps] and turns >= MIN_TURNS * splits * 2:
        splits *= 2
    return splits
