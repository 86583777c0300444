"""Files and folders that appear whole under their name, or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path that takes the place of `path` (a file or empty folder) at the end; an error leaves nothing.
    Raises OSError if it cannot be written, or a folder with content is in the way.
    """
    work = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    _remove(work)
    try:
        yield work
        if work.is_dir():
            if path.is_dir():
                path.rmdir()
            work.rename(path)
        else:
            with open(work, "rb") as file:
                os.fsync(file.fileno())
            os.replace(work, path)
    finally:
        _remove(work)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file with Unix line ends; see `atomic_path`."""
    with atomic_path(path) as work:
        work.write_text(text, encoding="utf-8", newline="\n")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
