"""Numbers of bytes, as people write and read them."""

from __future__ import annotations

import re

from chatglm.errors import InvalidRequestError

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
BINARY_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", re.IGNORECASE)


def parse_bytes(size: int | str) -> int:
    """Bytes of 2000000000, "2G", "1.5 GB", "200M" (decimal) or "2GiB" (binary); InvalidRequestError if not > 0."""
    match = SIZE.fullmatch(str(size).strip())
    unit = match.group(2).upper() if match else ""
    if match is None or (match.group(3) and not unit):
        raise InvalidRequestError(f"{size!r} is no size in bytes.", "Give one like 2G, 1.5G, 800M or 2GiB.")
    num_bytes = int(float(match.group(1)) * (BINARY_UNITS if match.group(3) else UNITS)[unit])
    if num_bytes <= 0:
        raise InvalidRequestError(f"{size!r} is no size above zero.", "Give one like 2G, 1.5G, 800M or 2GiB.")
    return num_bytes


def format_bytes(size_bytes: int) -> str:
    """A size for people, in decimal units: "13.4 GB", "820 MB", "5 kB"."""
    for unit, factor in (("TB", 10**12), ("GB", 10**9)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.1f} {unit}"
    if size_bytes >= 10**6:
        return f"{size_bytes / 10**6:.0f} MB"
    return f"{size_bytes / 1000:.0f} kB" if size_bytes >= 1000 else f"{size_bytes} bytes"
