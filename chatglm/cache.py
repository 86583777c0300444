"""The folders of this program's small files on this machine, which belong to its user alone."""

from __future__ import annotations

import os
import sys
from pathlib import Path

OWNER_ONLY = 0o700


def cache_folder() -> Path:
    """The folder of files that can be made again: $CHATGLM_CACHE, or the system's place for caches."""
    return _own_folder("XDG_CACHE_HOME", ".cache", "Caches")


def state_folder() -> Path:
    """The folder of what a program remembers: $CHATGLM_CACHE, or the system's place for such files."""
    return _own_folder("XDG_STATE_HOME", ".local/state", "Application Support")


def _own_folder(variable: str, otherwise: str, on_mac: str) -> Path:
    if chosen := os.environ.get("CHATGLM_CACHE"):
        return Path(chosen)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "chatglm"
    if sys.platform == "darwin":
        return Path.home() / "Library" / on_mac / "chatglm"
    return Path(os.environ.get(variable) or Path.home() / otherwise) / "chatglm"


def make_private_folder(folder: Path) -> Path:
    """Make `folder` private if it is absent, else leave it; raises OSError if it cannot be made or is no folder."""
    folder.mkdir(mode=OWNER_ONLY, parents=True, exist_ok=True)
    return folder


def is_private(path: Path) -> bool:
    """Whether a file or folder belongs to this user and nobody else may write to it; False where it is absent."""
    try:
        status = path.stat()
    except OSError:
        return False
    return status.st_uid == os.getuid() and not status.st_mode & 0o022
