"""Whether everything that a thread reads is on its way before it waits for any of it."""

from __future__ import annotations

import re

from tests.kernels.triton.compiling import count

WIDE_LOAD = r"LDG\.E\.128"
WIDE_STORE = r"STG\.E\.128"
USE = re.compile(r"\b(FADD|FMUL|FFMA|HADD2|SHFL|STG)\b")


def wide_loads_before_use(code: tuple[str, ...]) -> int:
    """Loads of 16 bytes before the first arithmetic with floats that follows any of them."""
    first_load = next(index for index, line in enumerate(code) if re.search(WIDE_LOAD, line))
    first_use = next(index for index, line in enumerate(code) if index > first_load and USE.search(line))
    return count(code[:first_use], WIDE_LOAD)
