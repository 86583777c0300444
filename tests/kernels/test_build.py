"""Compiling into the cache: once, whole, trusted, and a sentence where it cannot be done.

A library of one line stands for the kernels, except where they are meant.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from chatglm.kernels.cpu import build
from chatglm.kernels.cpu.build import NoLibraryError, library_path

SOURCE = '#include "answer.h"\nint answer(void) { return ANSWER; }\n'


@pytest.fixture(autouse=True)
def a_compiler(monkeypatch: pytest.MonkeyPatch) -> build.Compiler:
    monkeypatch.delenv("CC", raising=False)
    try:
        return build.find_compiler()
    except NoLibraryError as error:
        pytest.skip(str(error))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CHATGLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "answer.c").write_text(SOURCE)
    (folder / "answer.h").write_text("#define ANSWER 42\n#pragma GCC visibility push(default)\n")
    monkeypatch.setattr(build, "NATIVE", folder)
    return folder


@pytest.fixture
def compiler_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, a_compiler: build.Compiler
) -> Callable[[str], Path]:
    """Puts a shell script in the compiler's place; `$real "$@"` in it is the real one. Calls are logged."""

    def make(script: str) -> Path:
        path, log = tmp_path / "compiler", tmp_path / "calls"
        path.write_text(f'#!/bin/sh\nreal="{a_compiler.command[0]}"\necho "$@" >> "{log}"\n{script}\n')
        path.chmod(0o700)
        log.touch()
        monkeypatch.setenv("CC", str(path))
        return log

    return make


def answer(path: Path) -> int:
    return ctypes.CDLL(str(path)).answer()


def test_the_library_is_compiled_into_the_cache(cache: Path) -> None:
    path = library_path()
    assert answer(path) == 42
    assert path.parent.parent == cache / "kernels"
    assert path.stem == hashlib.sha256(path.read_bytes()).hexdigest()
    for made in (cache, cache / "kernels", path.parent, path):
        assert stat.S_IMODE(made.stat().st_mode) == 0o700
    assert list(path.parent.iterdir()) == [path]


def test_a_kept_library_is_not_compiled_again(compiler_script: Callable[[str], Path]) -> None:
    log = compiler_script('exec $real "$@"')
    first = library_path()
    time, calls = first.stat().st_mtime_ns, log.read_text().splitlines()
    assert library_path() == first
    assert first.stat().st_mtime_ns == time
    assert log.read_text().splitlines() == [*calls, "--version"]


def test_source_header_flags_and_compiler_make_a_new_library(
    source: Path, monkeypatch: pytest.MonkeyPatch, compiler_script: Callable[[str], Path]
) -> None:
    folders = {library_path().parent}
    (source / "answer.h").write_text((source / "answer.h").read_text() + "\n")
    folders.add(library_path().parent)
    (source / "answer.c").write_text(SOURCE + "\n")
    folders.add(library_path().parent)
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-g"))
    folders.add(library_path().parent)
    compiler_script('[ "$1" = --version ] && echo "another compiler 1.0" && exit\nexec $real "$@"')
    folders.add(library_path().parent)
    monkeypatch.setattr(build, "_processor", lambda: iter(["another processor"]))
    folders.add(library_path().parent)
    assert len(folders) == 6


def test_a_damaged_library_is_made_anew() -> None:
    path = library_path()
    whole = path.read_bytes()
    for damage in (whole[:100], b"", whole[:-1] + bytes([whole[-1] ^ 1])):
        path.write_bytes(damage)
        again = library_path()
        assert hashlib.sha256(again.read_bytes()).hexdigest() == again.stem
        assert list(path.parent.glob("*.so")) == [again]
    assert answer(again) == 42


@pytest.mark.parametrize("mode", [0o720, 0o702])
def test_a_library_that_others_can_write_is_made_anew(mode: int) -> None:
    path = library_path()
    path.chmod(mode)
    again = library_path()
    assert stat.S_IMODE(again.stat().st_mode) == 0o700


def test_a_library_of_somebody_else_is_not_loaded(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    kept = library_path()
    monkeypatch.setattr(os, "getuid", lambda: kept.stat().st_uid + 1)
    path = library_path()
    assert not path.is_relative_to(cache)
    assert answer(path) == 42


@pytest.mark.parametrize("which", ["kernels", "key"])
def test_a_folder_that_others_can_write_is_not_used(which: str, cache: Path) -> None:
    kept = library_path()
    (kept.parent if which == "key" else kept.parent.parent).chmod(0o777)
    path = library_path()
    assert not path.is_relative_to(cache)
    assert answer(path) == 42


def test_no_cache_folder_means_one_for_this_process(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.write_text("a file")
    first, second = library_path(), library_path()
    assert first != second
    assert answer(first) == 42


@pytest.mark.slow
def test_two_processes_at_once(cache: Path, source: Path) -> None:
    program = (
        "import ctypes, pathlib, sys\n"
        "from chatglm.kernels.cpu import build\n"
        f"build.NATIVE = pathlib.Path({str(source)!r})\n"
        "sys.stdin.read()\n"
        "print(build.library_path(), ctypes.CDLL(str(build.library_path())).answer())\n"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in processes:  # both have their imports behind them before either is let go
        assert process.stdin is not None
        process.stdin.close()
    for process in processes:
        assert process.stdout is not None
        path, value = process.stdout.read().split()
        assert process.wait(60) == 0
        assert value == "42"
        assert Path(path).is_relative_to(cache)
        process.stdout.close()
    assert len(list((cache / "kernels").glob("*/*.so"))) == 1
    assert not list((cache / "kernels").glob("*/part-*"))


def test_no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoLibraryError, match=r"No C compiler runs here .*cc gcc clang.*Install gcc, or set CC"):
        library_path()
    monkeypatch.setenv("CC", "no-such-compiler -O1")
    with pytest.raises(NoLibraryError, match="no-such-compiler"):
        library_path()


def test_a_compiler_that_fails(compiler_script: Callable[[str], Path], cache: Path) -> None:
    compiler_script('[ "$1" = --version ] && echo broken 1.0 && exit\necho "answer.c:1: error: no space" >&2; exit 3')
    with pytest.raises(NoLibraryError, match=r"compiler cannot compile the native kernels: answer\.c:1: error: no sp"):
        library_path()
    assert not list((cache / "kernels").glob("*/*"))


def test_a_compiler_that_makes_nothing(compiler_script: Callable[[str], Path]) -> None:
    compiler_script('[ "$1" = --version ] && echo idle 1.0\nexit 0')
    with pytest.raises(NoLibraryError, match="cannot be written"):
        library_path()


def test_a_compiler_without_openmp(compiler_script: Callable[[str], Path]) -> None:
    compiler_script('case "$*" in *-fopenmp*) echo "error: no omp.h" >&2; exit 1;; esac\nexec $real "$@"')
    assert answer(library_path()) == 42


def test_a_program_that_is_no_compiler(compiler_script: Callable[[str], Path]) -> None:
    compiler_script("exit 1")
    with pytest.raises(NoLibraryError, match="No C compiler"):
        library_path()


def test_flags_in_cc_are_used(monkeypatch: pytest.MonkeyPatch, a_compiler: build.Compiler, source: Path) -> None:
    (source / "answer.h").write_text("#pragma GCC visibility push(default)\n")
    monkeypatch.setenv("CC", f"{a_compiler.command[0]} -DANSWER=7")
    assert answer(library_path()) == 7


def test_other_systems_have_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build.os, "name", "nt")
    with pytest.raises(NoLibraryError, match="not built on"):
        library_path()
