"""The terminal chat and its parts, with a pipeline that echoes and no process started."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from chatglm.ui.session import ChatSession
from chatglm.ui.terminal.commands import NOTHING_TO_RETRY
from chatglm.ui.terminal.keyboard import Keyboard
from chatglm.ui.terminal.line_readers import USER_LABEL, PipeReader, TypingReader
from chatglm.ui.terminal.screen import Screen
from chatglm.ui.terminal.terminal_chat import TerminalChat
from tests.ui.fake_pipeline import FakePipeline


class Lines:
    """A reader of given lines; an exception among them is raised."""

    def __init__(self, *lines: str | BaseException) -> None:
        self._lines = iter((*lines, EOFError()))
        self.prompts: list[tuple[str, str]] = []

    def read(self, label: str = USER_LABEL, typed: str = "") -> str:
        self.prompts.append((label, typed))
        line = next(self._lines)
        if isinstance(line, BaseException):
            raise line
        return line


def chat(*lines: str | BaseException, has_person: bool = True, **kwargs: Any) -> tuple[FakePipeline, ChatSession, int]:
    """Run a chat over `lines`; returns pipeline, session and exit code."""
    talk = make_chat(Lines(*lines), has_person=has_person, **kwargs)
    return talk.pipeline, talk.session, talk.run()


def make_chat(lines: Lines, pipeline: Any = None, *, has_person: bool = True, **kwargs: Any) -> TerminalChat:
    pipeline = pipeline or FakePipeline()
    return TerminalChat(ChatSession(pipeline), Screen(has_person, has_person), lines, pipeline, **kwargs)


def test_rounds_go_with_the_next_question(capsys: pytest.CaptureFixture[str]) -> None:
    pipeline, session, code = chat("ab", "", " cd ")
    assert pipeline.calls[1][0] == ["ab", "ab", "cd"]
    assert session.history == [("ab", "ab"), ("cd", "cd")]
    assert code == 0
    assert capsys.readouterr().out == "\nChatGLM-6B：ab\n\nChatGLM-6B：cd\n\n"


def test_text_is_written_as_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []

    class Recorder(io.StringIO):
        def write(self, text: str) -> int:
            events.append(text)
            return len(text)

        def flush(self) -> None:
            events.append("flush")

    monkeypatch.setattr("sys.stdout", Recorder())
    chat("你好", has_person=False)
    assert events == ["你", "flush", "好", "flush", "\n", "flush"]


def test_commands_only_match_whole_lines() -> None:
    questions = ["help me", "Stop", "clear!", "save the whales", "please retry", "不要 stop"]
    _, session, _ = chat(*questions)
    assert [query for query, _ in session.history] == questions


def test_stop_leaves_and_clear_forgets(capsys: pytest.CaptureFixture[str]) -> None:
    pipeline, session, _ = chat("a", "clear", "retry", "stop", "b")
    assert len(pipeline.calls) == 1
    assert session.history == []
    assert NOTHING_TO_RETRY in capsys.readouterr().out


@pytest.mark.parametrize("num_presses", [1, 2])
def test_ctrl_c_keeps_the_text_so_far(num_presses: int, capsys: pytest.CaptureFixture[str]) -> None:
    """The second press does not wait for the step under way."""

    _, session, code = chat("abc", "de", pipeline=FakePipeline({"abc": (1, num_presses)}))
    assert session.history == [("abc", "a"), ("de", "de")]
    assert "已停止" in capsys.readouterr().out
    assert code == 0


@pytest.mark.parametrize("num_presses", [1, 2])
def test_an_answer_stopped_before_its_first_letter_is_no_round(num_presses: int) -> None:
    pipeline = FakePipeline({"abc": (0, num_presses)})
    _, session, _ = chat("abc", pipeline=pipeline)
    assert session.history == []


def test_ctrl_c_ends_a_pipe() -> None:
    pipeline = FakePipeline({"abc": (1, 1)})
    assert chat("abc", "never asked", has_person=False, pipeline=pipeline)[2] == 130
    assert len(pipeline.calls) == 1
    assert chat(KeyboardInterrupt(), "never asked", has_person=False)[2] == 130


def test_an_error_is_a_sentence_and_the_chat_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    pipeline, session, code = chat("a", "broken", "b")
    assert code == 0
    assert session.history == [("a", "a"), ("b", "b")]
    assert pipeline.calls[2][0] == ["a", "a", "b"]
    assert capsys.readouterr().err == "The network produced NaN.\n"
    assert chat("broken", "b", has_person=False)[2] == 1


def test_notes(capsys: pytest.CaptureFixture[str]) -> None:
    chat("long", "old", "nothing", is_verbose=True)
    notes = capsys.readouterr().out
    assert "已达到长度上限" in notes
    assert "最早的 2 轮" in notes
    assert "回答为空" in notes
    assert "tokens/s · length]" in notes
    assert "answer 0 tokens" in notes
    chat("long", has_person=False)
    streams = capsys.readouterr()
    assert streams.out == "long\n"
    assert "已达到长度上限" in streams.err


def test_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "theirs.md").write_text("precious")
    chat(
        "save a.md",
        "你好",
        "save",
        "save 对话.md",
        "save 'b c.json'",
        "再见",
        "save 对话.md",
        "save theirs.md",
        "save no/x",
    )
    streams = capsys.readouterr()
    assert "（用法 / usage: /save FILE）" in streams.out
    assert "**用户：**\n\n再见\n" in (tmp_path / "对话.md").read_text(
        encoding="utf-8"
    )  # our own file is brought up to date
    assert json.loads((tmp_path / "b c.json").read_text(encoding="utf-8"))["history"] == [["你好", "你好"]]
    assert (tmp_path / "theirs.md").read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b c.json", "theirs.md", "对话.md"]
    refused, failed = streams.err.splitlines()
    assert "theirs.md 已存在" in refused
    assert "No such file or directory" in failed


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_answers_cannot_command_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model may write any byte; on a terminal, control characters are shown, not obeyed. A pipe gets them all."""
    for stream, shown in ((Tty(), "a\n\t\ufffd[2J\ufffd"), (io.StringIO(), "a\n\t\x1b[2J\x9b")):
        monkeypatch.setattr("sys.stdout", stream)
        Screen(False, False).show("a\n\t\x1b[2J\x9b")
        assert stream.getvalue() == shown


def test_clear_speaks_the_terminals_language(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for term, is_terminal, is_cleared in (("xterm", True, True), ("dumb", True, False), ("xterm", False, False)):
        monkeypatch.setenv("TERM", term)
        Screen(is_terminal, is_terminal).clear()
        assert ("\x1b[2J" in capsys.readouterr().out) == is_cleared


def test_lines_from_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("\ufeff一\n\n二"))
    reader = PipeReader()
    assert [reader.read(), reader.read(), reader.read()] == ["一\n", "\n", "二"]
    with pytest.raises(EOFError):
        reader.read()


def test_a_person_whose_answers_go_to_a_file_is_asked_on_stderr(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("一\n"))
    screen = Screen(has_person=True, is_terminal=False)
    assert TypingReader(screen, Keyboard(is_used=False)).read() == "一\n"
    assert capsys.readouterr() == ("", "\n用户：")
