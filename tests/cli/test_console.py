"""How programs start, talk on stderr and end."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest

from chatglm.__main__ import main
from chatglm.cli import console
from chatglm.cli.parsing import misspelt_variables
from tests import forking

ROOT = Path(__file__).parents[2]
PROGRAM = """
import atexit, sys, threading, time
from chatglm.cli.console import run_program
class Late:
    def __del__(self): print("taken apart")
late = Late()
def work():
    time.sleep(0.05)
    print("thread")
def program():
    atexit.register(lambda: print("exit handler"))
    threading.Thread(target=work).start()
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    print("answer", end="", flush=False)
    {end}
run_program(program)
"""


@pytest.mark.parametrize(
    ("end", "code", "err"),
    [
        ("return 3", 3, ""),
        ("return None", 0, ""),
        ("sys.exit(4)", 4, ""),
        ("sys.exit()", 0, ""),
        ("sys.exit('why')", 1, "why\n"),
    ],
)
def test_a_program_ends_orderly_but_is_not_taken_apart(end: str, code: int, err: str) -> None:
    argv = [sys.executable, "-c", PROGRAM.replace("{end}", end)]
    done = forking.run(argv, preload=forking.TORCH, capture_output=True, encoding="utf-8", cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (code, "answerthread\nexit handler\n", err)


def test_an_error_ends_a_program_as_ever() -> None:
    argv = [sys.executable, "-c", PROGRAM.replace("{end}", "raise KeyError('x')")]
    done = forking.run(argv, preload=forking.TORCH, capture_output=True, encoding="utf-8", cwd=ROOT)
    assert done.returncode == 1
    assert "KeyError: 'x'" in done.stderr


def test_output_that_cannot_be_written_is_an_error() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    argv = [sys.executable, "-c", PROGRAM.replace("{end}", "return 0")]
    with open("/dev/full", "w") as full:
        done = forking.Popen(argv, preload=forking.TORCH, stdout=full, stderr=subprocess.DEVNULL, cwd=ROOT)
        assert done.wait(240) == 1


@pytest.mark.parametrize(
    ("argv", "meant"),
    [
        (["chta"], "did you mean chat?"),
        (["chat", "--modle", "x"], "did you mean --model?"),
        (["chat", "--dtype=bf61"], "did you mean bf16?"),
        (["chat", "-model", "x"], "did you mean --model?"),
        (["serve", "--prot=8000"], "did you mean --port?"),
        (["quantize", "a", "b", "--bit", "4"], "did you mean --bits?"),
        (["quantize", "a", "b", "--method", "gtpq"], "did you mean gptq?"),
        (["doctor", "--hlep"], "did you mean --help?"),
    ],
)
def test_misspelt_names(argv: list[str], meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(argv)
    assert end.value.code == 2
    assert meant in capsys.readouterr().err


@pytest.mark.parametrize("script", ["cli_demo.py", "web_demo.py", "api.py", "stream_api.py"])
def test_misspelt_names_of_scripts(script: str) -> None:
    argv = [sys.executable, script, "--modle", "x"]
    done = forking.run(argv, preload=forking.TORCH, capture_output=True, encoding="utf-8", cwd=ROOT)
    assert (done.returncode, done.stdout) == (2, "")
    assert "did you mean --model?" in done.stderr


def test_names_that_are_like_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["chat", "--zzz", "word"])
    assert "unrecognized arguments: --zzz word\n" in capsys.readouterr().err


def test_misspelt_variables(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    variables = {"CHATGLM_MODLE": "x", "CHATGLM_MODEL": "y", "CHATGLM_SHARE": "1", "CHATGLM_CACHE": "z", "MODLE": "w"}
    [message] = misspelt_variables(variables)
    assert "CHATGLM_MODLE" in message
    assert "did you mean CHATGLM_MODEL?" in message
    monkeypatch.setenv("CHATGLM_QUANTISE", "4")
    with pytest.raises(SystemExit):
        main(["chat", "--help"])
    assert "did you mean CHATGLM_QUANTIZE?" in capsys.readouterr().err


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_messages_are_wrapped_for_people_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    for stream, text in ((Tty(), "one two three four\nfive\n"), (io.StringIO(), "one two three four five\n")):
        monkeypatch.setattr("sys.stderr", stream)
        console.report("one two three four five")
        assert stream.getvalue() == text


def test_a_status_line_is_gone_when_it_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    for stream, text in ((Tty(), "正在加载模型 loadin\r                   \r"), (io.StringIO(), "")):
        monkeypatch.setattr("sys.stderr", stream)
        status = console.StatusLine("正在加载模型 loading")
        status.clear()
        status.clear()
        assert stream.getvalue() == text
