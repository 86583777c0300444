"""A path that is no model folder: each kind has a message of its own, in Chinese and English, with a remedy."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from chatglm.errors import ChatGLMError, CheckpointError
from chatglm.loading import load
from tests.folders import make_folder

NOBODY = 65534
HAN = range(0x4E00, 0xA000)


def message(model: str | Path, **options: str | Path) -> str:
    """What the user is told, which is Chinese and English, in one line."""
    with pytest.raises(CheckpointError) as raised:
        load(str(model), **options)
    text = str(raised.value)
    assert any(ord(letter) in HAN for letter in text)
    assert raised.value.remedy
    assert "\n" not in text
    return text


def test_every_kind(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    absent = message(tmp_path / "nothing-like-it")
    file = message(folder / "config.json")
    assert "It is a file" in file
    assert f"Give the folder: {folder}" in file
    assert "It is a file" in message(folder / "config.json" / "deeper")
    (tmp_path / "link").symlink_to("gone")
    link = message(tmp_path / "link")
    assert "broken link to gone" in link
    (tmp_path / "round").symlink_to("round")
    assert "Too many levels" in message(tmp_path / "round")
    (tmp_path / "empty").mkdir()
    empty = message(tmp_path / "empty")
    assert "The folder is empty" in empty
    assert "cannot be read" in message("x" * 300)
    assert "There is no folder ~nobody-at-all/model" in message("~nobody-at-all/model")
    (folder / "config.json").unlink()
    config = message(folder)
    assert f"Download config.json of this model into {folder}" in config
    assert len({text.replace(str(tmp_path), "") for text in (absent, file, link, empty, config)}) == 5


def test_a_typing_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One name of the path is misspelt, whichever it is."""
    typo = folder.parent.with_name(f"{folder.parent.name}x") / folder.name
    for wrong in (folder.with_name("modle"), typo):
        assert f"Did you mean {folder}?" in message(wrong)
    monkeypatch.chdir(folder.parent)
    assert "Did you mean model?" in message("mdoel")
    assert "Did you mean" not in message("chatglm")


def test_adapters_that_are_not_there(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for flag in ("ptuning_checkpoint", "lora_checkpoint"):
        for path in (tmp_path / "absent", tmp_path / "empty"):
            assert f"--{flag.replace('_', '-')}" in message(folder, **{flag: path})


@pytest.fixture
def readable_by_all() -> Iterator[Path]:
    """A folder with a model that everybody reaches; pytest's own are for the tester alone."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        make_folder(Path(name) / "outer" / "model")
        yield Path(name) / "outer"
        for path in Path(name).rglob("*"):
            path.chmod(0o755)


def as_nobody(action: Callable[[], str]) -> str:
    """What `action` returns to somebody without rights; root may read everything."""
    if os.geteuid():
        return action()
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            os.write(writer, action().encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, encoding="utf-8") as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return text


@pytest.mark.parametrize(("blocked", "mode"), [("model", 0o000), ("model", 0o744), ("", 0o700)])
def test_a_folder_without_permission(blocked: str, mode: int, readable_by_all: Path) -> None:
    closed = readable_by_all / blocked

    def attempt() -> str:
        try:
            load(readable_by_all / "model")
        except ChatGLMError as error:
            return str(error)
        return "loaded"

    closed.chmod(mode if os.geteuid() == 0 else 0)
    text = as_nobody(attempt)
    assert f"没有读取 {closed} 的权限" in text
    assert f"chmod -R a+rX {closed}" in text
