"""The folder of small files: where it is, and whose."""

from __future__ import annotations

import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from chatglm.cache import cache_folder, is_private, make_private_folder, state_folder


def test_the_chosen_folder_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHATGLM_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == state_folder() == tmp_path / "mine"


@pytest.mark.parametrize(
    ("folder", "platform", "variable", "end"),
    [
        (cache_folder, "linux", "XDG_CACHE_HOME", "chatglm"),
        (cache_folder, "linux", "HOME", ".cache/chatglm"),
        (cache_folder, "win32", "LOCALAPPDATA", "chatglm"),
        (cache_folder, "darwin", "HOME", "Library/Caches/chatglm"),
        (state_folder, "linux", "XDG_STATE_HOME", "chatglm"),
        (state_folder, "linux", "HOME", ".local/state/chatglm"),
        (state_folder, "win32", "LOCALAPPDATA", "chatglm"),
        (state_folder, "darwin", "HOME", "Library/Application Support/chatglm"),
    ],
)
def test_else_the_place_of_the_system(
    folder: Callable[[], Path],
    platform: str,
    variable: str,
    end: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for other in ("CHATGLM_CACHE", "XDG_CACHE_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.setattr(sys, "platform", platform)
    assert folder() == tmp_path / end


def test_a_made_folder_is_its_owners_alone(tmp_path: Path) -> None:
    folder = make_private_folder(tmp_path / "a" / "b")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert is_private(folder)


def test_a_folder_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    assert make_private_folder(tmp_path) == tmp_path
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755


@pytest.mark.parametrize(("mode", "expected"), [(0o600, True), (0o644, True), (0o660, False), (0o602, False)])
def test_private_means_that_nobody_else_writes(mode: int, expected: bool, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    file.chmod(mode)
    assert is_private(file) is expected


def test_what_is_absent_is_not_private(tmp_path: Path) -> None:
    assert not is_private(tmp_path / "absent")
