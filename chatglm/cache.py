"""The folder of this program's small files on this machine, which belongs to its user alone."""

from __future__ import annotations

import os
import sys
from pathlib import Path

OWNER_ONLY = 0o700


def cache_folder() -> Path:
    """The folder of this program's small files: $CHATGLM_CACHE, or the system's place for caches."""
    if chosen := os.environ.get("CHATGLM_CACHE"):
        return Path(chosen)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "chatglm"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "chatglm"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "chatglm"


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
