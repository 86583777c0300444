"""tests.forking: a forked program is like a fresh one, and an open terminal is a terminal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import forking

PROGRAM = """
import codecs, os, signal, sys
print(__name__, sys.argv, os.getcwd(), sys.stdin.read(), os.environ.get("NAME"), os.environ.get("HOME"))
print(codecs.lookup(sys.stdout.encoding).name, sys.stderr.errors, sys.stdout.line_buffering)
print(signal.getsignal(signal.SIGINT))
print(sys.path[0], file=sys.stderr)
sys.exit("ends")
"""


@pytest.mark.parametrize("form", ["script", "module", "code"])
def test_a_forked_program_is_like_a_fresh_one(form: str, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")
    words = {"script": ["program.py"], "module": ["-m", "program"], "code": ["-c", PROGRAM]}[form]
    options = {"cwd": tmp_path, "env": {"NAME": "x", "PYTHONIOENCODING": "latin-1"}, "capture_output": True}
    argv = [sys.executable, *words, "a", "b"]
    fresh = subprocess.run(argv, input="é".encode("latin-1"), check=False, **options)
    forked = forking.run(argv, input="é".encode("latin-1"), preload=forking.TORCH, **options)
    assert vars(forked) == vars(fresh)
    assert fresh.returncode == 1


def test_signals_and_exit_codes() -> None:
    argv = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]
    with forking.Popen(argv, preload=forking.TORCH, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == -signal.SIGTERM


CTRL_C = """
import os, time
try:
    print(os.get_terminal_size().columns, input("?"), flush=True)
    while True:
        time.sleep(0.01)
except KeyboardInterrupt:
    print("bye")
"""


def test_a_terminal() -> None:
    process, terminal = forking.open_terminal([sys.executable, "-c", CTRL_C], 40, 100, preload=forking.TORCH)
    os.write(terminal, b"typed\r")
    shown = b""
    while b"100 typed\r\n" not in shown:
        shown += os.read(terminal, 1000)
    os.write(terminal, b"\x03")
    while b"bye" not in shown:
        shown += os.read(terminal, 1000)
    assert process.wait(60) == 0
    os.close(terminal)
