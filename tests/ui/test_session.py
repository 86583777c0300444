"""The chat's loop and its parts, with a pipeline that says what the test wants and no process started."""

from __future__ import annotations

import io
import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chatglm.ui.conversation import Conversation
from chatglm.ui.terminal.loop import HOW_TO_SAVE, NOTHING_TO_RETRY, Session
from chatglm.ui.terminal.reading import PipeReader, TypingReader, sound_text

from chatglm.errors import ChatGLMError, InvalidLogitsError
from chatglm.generation.deltas import Delta
from chatglm.progress import ProgressBar
from chatglm.ui.terminal.screen import Screen
from chatglm.ui.transcript import render_json, render_markdown, save_transcript


class FakePipeline:
    """Echoes the question letter by letter; some questions have a meaning of their own.

    Args:
        presses: question -> (letters until Ctrl+C is pressed, how often it is).
    """

    name, is_demo = "fake", False

    def __init__(self, presses: dict[str, tuple[int, int]] | None = None) -> None:
        self.calls: list[tuple[str, list[tuple[str, str]], dict[str, Any]]] = []
        self.presses = presses or {}

    def stream(self, query: str, history: Any, *, cancel: threading.Event, **options: Any) -> Iterator[Delta]:
        self.calls.append((query, list(history), options))
        if query == "broken":
            yield Delta("half", None, 5, 1)
            raise InvalidLogitsError("The network produced NaN.")
        num_letters, num_presses = self.presses.get(query, (-1, 0))
        for number, letter in enumerate("" if query == "nothing" else query):
            for _ in range(num_presses if number == num_letters else 0):
                os.kill(os.getpid(), signal.SIGINT)
            if cancel.is_set():
                yield Delta("", "cancelled", 5, number)
                return
            yield Delta(letter, None, 5, number + 1)
        reason = "length" if query == "long" else "stop"
        yield Delta("", reason, 5, len(query) if query != "nothing" else 0, 2 if query == "old" else 0)  # type: ignore[arg-type]


class Lines:
    """A reader of given lines; an exception among them is raised."""

    def __init__(self, *lines: str | BaseException) -> None:
        self._lines = iter((*lines, EOFError()))

    def read(self) -> str:
        line = next(self._lines)
        if isinstance(line, BaseException):
            raise line
        return line


def chat(*lines: str | BaseException, has_person: bool = True, **kwargs: Any) -> tuple[FakePipeline, Conversation, int]:
    """Run a session over `lines`; returns pipeline, conversation and exit code."""
    pipeline = kwargs.pop("pipeline", None) or FakePipeline()
    conversation = Conversation(pipeline, {"seed": kwargs.pop("seed", None), "system": None})
    session = Session(conversation, Screen(has_person, has_person), Lines(*lines), **kwargs)
    return pipeline, conversation, session.run()


def test_rounds_go_with_the_next_question(capsys: pytest.CaptureFixture[str]) -> None:
    pipeline, conversation, code = chat("ab", "", " cd ")
    assert pipeline.calls[1][:2] == ("cd", [("ab", "ab")])
    assert conversation.history == [("ab", "ab"), ("cd", "cd")]
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
    _, conversation, _ = chat(*questions)
    assert [query for query, _ in conversation.history] == questions


def test_stop_leaves_and_clear_forgets(capsys: pytest.CaptureFixture[str]) -> None:
    pipeline, conversation, _ = chat("a", "clear", "retry", "stop", "b")
    assert len(pipeline.calls) == 1
    assert conversation.history == []
    assert NOTHING_TO_RETRY in capsys.readouterr().out


def test_retry_asks_the_same_with_another_seed() -> None:
    pipeline, conversation, _ = chat("a", "b", "retry", "retry", seed=7)
    assert [(query, past, options["seed"]) for query, past, options in pipeline.calls[1:]] == [
        ("b", [("a", "a")], 7),
        ("b", [("a", "a")], 8),
        ("b", [("a", "a")], 9),
    ]
    assert conversation.history == [("a", "a"), ("b", "b")]


def test_retry_without_a_seed_draws_anew() -> None:
    pipeline, _, _ = chat("a", "retry")
    assert [options["seed"] for _, _, options in pipeline.calls] == [None, None]


@pytest.mark.parametrize("num_presses", [1, 2])
def test_ctrl_c_keeps_the_text_so_far(num_presses: int, capsys: pytest.CaptureFixture[str]) -> None:
    """The second press does not wait for the step under way."""

    _, conversation, code = chat("abc", "de", pipeline=FakePipeline({"abc": (1, num_presses)}))
    assert conversation.history == [("abc", "a"), ("de", "de")]
    assert "已停止" in capsys.readouterr().out
    assert code == 0


@pytest.mark.parametrize("num_presses", [1, 2])
def test_an_answer_stopped_before_its_first_letter_is_no_round(num_presses: int) -> None:
    pipeline = FakePipeline({"abc": (0, num_presses)})
    _, conversation, _ = chat("abc", pipeline=pipeline)
    assert conversation.history == []
    # A retry that is stopped so early leaves the answer that it was to replace.
    pipeline = FakePipeline()
    conversation = Conversation(pipeline, {"seed": 1})  # type: ignore[arg-type]
    conversation.ask("x", lambda delta: None, threading.Event())
    pipeline.presses = {"x": (0, num_presses)}
    assert Session(conversation, Screen(True, True), Lines("retry")).run() == 0
    assert conversation.history == [("x", "x")]


def test_ctrl_c_ends_a_pipe() -> None:
    pipeline = FakePipeline({"abc": (1, 1)})
    assert chat("abc", "never asked", has_person=False, pipeline=pipeline)[2] == 130
    assert len(pipeline.calls) == 1
    assert chat(KeyboardInterrupt(), "never asked", has_person=False)[2] == 130


def test_an_error_is_a_sentence_and_the_chat_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    pipeline, conversation, code = chat("a", "broken", "b")
    assert code == 0
    assert conversation.history == [("a", "a"), ("b", "b")]
    assert pipeline.calls[2][1] == [("a", "a")]
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
    assert HOW_TO_SAVE in streams.out
    assert "**用户：**\n\n再见\n" in (tmp_path / "对话.md").read_text(
        encoding="utf-8"
    )  # our own file is brought up to date
    assert json.loads((tmp_path / "b c.json").read_text(encoding="utf-8"))["history"] == [["你好", "你好"]]
    assert (tmp_path / "theirs.md").read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b c.json", "theirs.md", "对话.md"]
    refused, failed = streams.err.splitlines()
    assert "theirs.md 已存在" in refused
    assert "No such file or directory" in failed


def test_transcript_forms(tmp_path: Path) -> None:
    history = [("问", "答\n\n二")]
    assert json.loads(render_json(history, "m", "s")) == {"model": "m", "system": "s", "history": [["问", "答\n\n二"]]}
    assert render_markdown(history, "m", "s").endswith(
        "**系统指令：**\n\ns\n\n**用户：**\n\n问\n\n**ChatGLM-6B：**\n\n答\n\n二\n"
    )
    with pytest.raises(ChatGLMError, match="无法保存"):
        save_transcript(tmp_path, history, "m", None, may_replace=True)  # a folder


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_bar_comes_only_to_people_who_wait() -> None:
    for stream, patience_s, is_drawn in ((Tty(), 3600.0, False), (Tty(), 0.0, True), (io.StringIO(), 0.0, False)):
        with ProgressBar(stream, patience_s) as bar:
            for share in range(4):
                bar(share * 10**9, 3 * 10**9)
        assert ("Loading" in stream.getvalue()) == is_drawn
        assert stream.getvalue().endswith("\r") == is_drawn


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
    assert TypingReader(Screen(has_person=True, is_terminal=False)).read() == "一\n"
    assert capsys.readouterr() == ("", "\n用户：")


def test_sound_text() -> None:
    assert sound_text("你好\ud83d\udc4b") == "你好👋"  # two halves, as Windows consoles give them
    assert sound_text("bytes \udcff") == "bytes \ufffd"
