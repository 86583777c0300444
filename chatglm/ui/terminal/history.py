"""What was typed at the prompt, kept for later chats in a file that only its owner can read."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from prompt_toolkit.history import FileHistory

from chatglm.cache import make_private_folder, state_folder

FILE_NAME = "history"
MAX_BYTES = 1_000_000


class PrivateHistory(FileHistory):
    """A FileHistory (mode 0600, at most about a megabyte) that works without its file where that cannot be used."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        with suppress(OSError):
            make_private_folder(path.parent)
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
            path.chmod(0o600)
            _shorten(path)

    def load_history_strings(self) -> Iterable[str]:
        with suppress(OSError):
            return list(super().load_history_strings())
        return []

    def store_string(self, string: str) -> None:
        with suppress(OSError):
            super().store_string(string)


def history_path() -> Path | None:
    """Where the file lies; None if no home folder is known."""
    with suppress(RuntimeError):
        return state_folder() / FILE_NAME
    return None


def _shorten(path: Path) -> None:
    """Drop the older half of a file that has grown too long, up to the start of an entry."""
    content = path.read_bytes()
    if len(content) > MAX_BYTES:
        path.write_bytes(content[content.find(b"\n#", len(content) // 2) :])
