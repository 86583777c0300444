"""`main` called in this process: exit codes and what goes to which stream, without a terminal."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from chatglm.cli.flags import ALL_FLAGS, ANSWER_FLAGS, MODEL_FLAGS
from chatglm.cli.parsing import Parser, add_flags, answer_options, model_options
from chatglm.ui.terminal.history import MAX_BYTES, PrivateHistory
from chatglm.ui.terminal.keyboard import Keyboard
from chatglm.ui.terminal.line_readers import PipeReader, Reader, TypingReader, make_reader
from chatglm.ui.terminal.screen import Screen, has_style
from chatglm.ui.terminal.terminal_app import main
from chatglm.ui.terminal.terminal_chat import BANNER


@pytest.fixture(autouse=True)
def _clean_environment(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHATGLM_CACHE", environment["CHATGLM_CACHE"])
    for flag in ALL_FLAGS:
        monkeypatch.delenv(flag.variable, raising=False)


def feed(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))


def test_a_pipe_goes_on_after_a_question_that_cannot_be_answered(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    feed(monkeypatch, f"你好\n{'长' * 100}\n你好\n".encode())
    assert main(["--model", str(tiny_folder), "--temperature", "0", "--max-length", "40", "--system", "短"]) == 1
    streams = capsys.readouterr()
    answers = streams.out.splitlines()
    assert [bool(answer) for answer in answers] == [True, False, True]  # still one line for each question
    assert BANNER in streams.err
    assert "40" in streams.err


def test_one_question(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--model", str(tiny_folder), "--seed", "1", "--max-length", "30"]
    assert main([*flags, "--prompt", "你好\udcff"]) == 0  # a byte of the command line that was no text
    streams = capsys.readouterr()
    assert streams.out.strip()
    assert BANNER not in streams.err
    assert main([*flags, "--prompt", "长" * 100]) == 1
    assert capsys.readouterr().out == "\n"


def test_missing_folder_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", "/no/such/folder", "--prompt", "你好"]) == 1
    streams = capsys.readouterr()
    [line] = streams.err.splitlines()
    assert line.startswith("没有文件夹 /no/such/folder。There is no folder /no/such/folder.")
    assert streams.out == ""


@pytest.mark.parametrize(
    ("flags", "variables", "message"),
    [
        (["--no-such-flag"], {}, "--no-such-flag"),
        (["--temp", "0"], {}, "--temp"),  # abbreviations would change meaning when flags are added
        (["--top-p", "2"], {}, "top_p must be"),
        (["--dtype", "int3"], {}, "--dtype"),
        (["--quantize", "5"], {}, "--quantize"),
        (["--prompt", " "], {}, "--prompt: the question is empty"),
        (["--max-memory", "much"], {}, "--max-memory"),
        (["--max-memory", "0"], {}, "--max-memory"),
        ([], {"CHATGLM_TOP_P": "much"}, "CHATGLM_TOP_P"),
        ([], {"CHATGLM_MAX_MEMORY": "2 apples"}, "CHATGLM_MAX_MEMORY"),
        ([], {"CHATGLM_MMAP": "maybe"}, "CHATGLM_MMAP"),
        ([], {"CHATGLM_QUANTIZE": "5"}, "CHATGLM_QUANTIZE"),
        ([], {"CHATGLM_MAX_LENGTH": "0"}, "max_length must be"),
    ],
)
def test_wrong_flags_are_rejected_before_loading(
    flags: list[str],
    variables: dict[str, str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as end:
        main(flags)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_flags_go_before_variables_before_defaults() -> None:
    parser = Parser(prog="program", description="", epilog="")
    variables = {
        "CHATGLM_MODEL": "/models/100% real",
        "CHATGLM_TOP_P": "0.5",
        "CHATGLM_SEED": "",
        "CHATGLM_MMAP": "1",
        "CHATGLM_MAX_MEMORY": "2G",
    }
    add_flags(parser, "model", MODEL_FLAGS, variables)
    add_flags(parser, "answers", ANSWER_FLAGS, variables)
    arguments = parser.parse_args(["--top-p", "0.25", "--ptuning-checkpoint", "p", "--max-memory", "1.5G"])
    assert model_options(arguments) == {
        "model": "/models/100% real",
        "device": "auto",
        "dtype": "auto",
        "quantize": None,
        "ptuning_checkpoint": "p",
        "lora_checkpoint": None,
        "mmap": True,
        "max_memory": 1_500_000_000,
    }
    nothing = {"max_length": None, "top_k": None, "temperature": None, "seed": None, "system": None}
    assert answer_options(arguments) == {**nothing, "top_p": 0.25}
    assert "(default: /models/100% real; $CHATGLM_MODEL)" in parser.format_help()
    assert parser.parse_args(["--no-mmap"]).mmap is False


def test_when_answers_are_styled(monkeypatch: pytest.MonkeyPatch) -> None:
    """On terminals that know colours, for people who do not mind."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    for variables, is_plain, is_styled in (
        ({"TERM": "xterm", "NO_COLOR": ""}, False, True),
        ({"TERM": "xterm", "NO_COLOR": ""}, True, False),
        ({"TERM": "xterm", "NO_COLOR": "1"}, False, False),
        ({"TERM": "dumb", "NO_COLOR": ""}, False, False),
    ):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        assert has_style(is_plain=is_plain) == is_styled
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False)
    monkeypatch.setenv("TERM", "xterm")
    assert not has_style()


def test_a_history_is_short_and_does_without_its_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "file" / "inside", tmp_path / "history"):  # a folder; no folder; nothing yet
        (tmp_path / "file").touch()
        history = PrivateHistory(path)
        history.append_string("一")
        assert history.get_strings() == ["一"]
    assert list(PrivateHistory(path).load_history_strings()) == ["一"]
    path.write_bytes(b"\xff\x00 no history\n" * 10)
    assert list(PrivateHistory(path).load_history_strings()) == []
    history = PrivateHistory(path)
    for number in range(12):
        history.store_string(f"{number} {'x' * (MAX_BYTES // 10)}")
    kept = [int(line.split()[0]) for line in PrivateHistory(path).load_history_strings()]
    assert kept == list(range(11, 12 - len(kept) - 1, -1))  # the newest, first
    assert 3 <= len(kept) <= 6


def test_kind_of_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """Editing needs a terminal on both sides that understands escape codes."""

    def reader(**screen: bool) -> Reader:
        return make_reader(Screen(**screen), Keyboard(is_used=False), keeps_history=False)

    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(reader(has_person=False, is_terminal=False), PipeReader)
    assert isinstance(reader(has_person=True, is_terminal=False), TypingReader)
    assert isinstance(reader(has_person=True, is_terminal=True), TypingReader)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setitem(sys.modules, "prompt_toolkit", None)
    assert isinstance(reader(has_person=True, is_terminal=True), TypingReader)
