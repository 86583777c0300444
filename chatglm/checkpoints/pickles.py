"""Looking into a pickle without executing it: is it one, and which names of other modules does it call for?"""

from __future__ import annotations

import pickletools
import zipfile
from collections.abc import Iterator
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

# What is looked at; the names and shapes of a model take 100 kB and 20,000 operations.
LONGEST_READ, MOST_OPERATIONS = 1_000_000, 100_000
PROTOCOL_2 = b"\x80"  # first byte since protocol 2
OF_TORCH = ("torch.", "collections.OrderedDict")
MEMO_READ = ("BINGET", "LONG_BINGET", "GET")
MEMO_WRITTEN = ("BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE")


def is_pickle(path: Path) -> bool:
    """Whether the file begins like a pickle of protocol 2 and later, or is a whole one of protocol 0 or 1."""
    with path.open("rb") as file:
        start = file.read(LONGEST_READ)
    if start.startswith(PROTOCOL_2):
        return True
    *_, last = ("", None), *_operations(start)
    return last[0] == "STOP"


def foreign_name(path: Path) -> str:
    """The first class or function that the pickle in this file, or in this archive of torch.save, names and that is not
    one of torch; "" if there is none or nothing can be read.
    """
    texts = ["", ""]
    memo: dict[int, str] = {}
    for name, value in _operations(_pickle_bytes(path)):
        found = ""
        if name in MEMO_WRITTEN:
            memo[len(memo) if value is None else value] = texts[-1]
        elif name in ("GLOBAL", "INST"):
            found = str(value).replace(" ", ".")
        elif name == "STACK_GLOBAL":
            found = ".".join(texts[-2:])
        else:
            texts = [texts[-1], memo.get(value, "") if name in MEMO_READ else str(value) if "UNICODE" in name else ""]
        if found and not found.startswith(OF_TORCH):
            return found[:80]
    return ""


def _pickle_bytes(path: Path) -> bytes:
    try:
        with zipfile.ZipFile(path) as archive:
            inner = next(name for name in archive.namelist() if name.endswith("data.pkl"))
            with archive.open(inner) as file:
                return file.read(LONGEST_READ)
    except (OSError, StopIteration, ValueError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError):
        with path.open("rb") as file:
            return file.read(LONGEST_READ)


def _operations(content: bytes) -> Iterator[tuple[str, Any]]:
    """(name, argument) of each operation, up to the end or the first that cannot be read."""
    try:
        for operation, value, _ in islice(pickletools.genops(BytesIO(content)), MOST_OPERATIONS):
            yield operation.name, value
    except Exception:  # garbage fails in many ways, all of which end it
        return
