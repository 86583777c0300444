"""`python -m chatglm convert SRC DST` and `python -m chatglm quantize SRC DST --bits 4|8`.

Knows: flags and what is said at the end. Does not know how a folder is written.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from chatglm.conversion.folder import convert_folder
from chatglm.devices import format_bytes
from chatglm.progress import LoadingBar


def convert(argv: Sequence[str] | None = None) -> int:
    """Write a folder as safetensors; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m chatglm convert", description="Write a model folder as safetensors (from .bin shards or not)."
    )
    return _run(parser, argv)


def quantize(argv: Sequence[str] | None = None) -> int:
    """Write a folder with packed weights; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m chatglm quantize", description="Write a model folder with INT8 or INT4 weights."
    )
    parser.add_argument("--bits", type=int, choices=(4, 8), default=4, help="per weight (default: 4)")
    return _run(parser, argv)


def _run(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> int:
    parser.add_argument("source", type=Path, help="model folder")
    parser.add_argument("target", type=Path, help="new folder")
    arguments = parser.parse_args(argv)
    source, target = arguments.source.expanduser(), arguments.target.expanduser()
    with LoadingBar(sys.stderr) as bar:
        convert_folder(source, target, bits=getattr(arguments, "bits", None), progress=bar)
    print(f"{target}: {format_bytes(_size(target))} (was {format_bytes(_size(source))})")
    return 0


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
