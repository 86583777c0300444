"""The native library as Python sees it: its functions and their types."""

from __future__ import annotations

import ctypes
from ctypes import c_int32, c_int64, c_void_p
from pathlib import Path
from struct import Struct

from chatglm.kernels.cpu.build import NoLibraryError

# The C struct Weight: packed, scale, bias; rows, columns; bits, group_size, scale_is_half, padding. A bytes object
# passes as the pointer to it: packing one is ten times quicker than a ctypes.Structure, and a token takes 113.
WEIGHT = Struct("@PPPqqiii4x")

_LINEAR = (c_void_p, c_void_p, c_int64, c_void_p, c_int32)
PROTOTYPES: dict[str, tuple[type[c_int32] | None, tuple[type[c_int32 | c_int64 | c_void_p], ...]]] = {
    "chatglm_best_isa": (c_int32, ()),
    "chatglm_isa": (c_int32, ()),
    "chatglm_use_isa": (None, (c_int32,)),
    "chatglm_is_sanitized": (c_int32, ()),
    "chatglm_linear_int8": (c_int32, _LINEAR),
    "chatglm_linear_float": (c_int32, _LINEAR),
    "chatglm_dequantize": (c_int32, (c_void_p, c_void_p, c_int32)),
    "chatglm_gelu": (None, (c_void_p, c_int64, c_int32)),
    "chatglm_rotate": (None, (*[c_void_p] * 3, *[c_int64] * 3, c_int32, c_int32)),
    "chatglm_attend_one": (c_int32, (*[c_void_p] * 6, *[c_int64] * 4, c_int32, c_int32)),
    "chatglm_attend_prompt": (c_int32, (*[c_void_p] * 4, *[c_int64] * 5, c_int32)),
}


def open_library(path: Path) -> ctypes.CDLL:
    """Load a compiled file; raises NoLibraryError. torch comes first, so that both use one OpenMP and its threads."""
    try:
        library = ctypes.CDLL(str(path))
        for name, (result, arguments) in PROTOTYPES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise NoLibraryError(f"The native kernels cannot be loaded: {error}.") from error
    return library
