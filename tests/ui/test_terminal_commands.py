"""The commands of the terminal chat, with a pipeline that echoes and no process started."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from chatglm.cells import cell_width
from chatglm.ui.notes import CONTEXT_FULL
from chatglm.ui.rounds import Reply, Round
from chatglm.ui.terminal.commands import (
    BY_SLASH,
    COMMANDS,
    NOTHING_TO_CONTINUE,
    NOTHING_TO_UNDO,
    help_text,
)
from chatglm.ui.terminal.terminal_chat import BANNER, TerminalChat
from tests.ui.fake_pipeline import FakePipeline
from tests.ui.test_terminal_chat import Lines, chat, make_chat


def test_slash_commands_do_what_the_plain_words_do(capsys: pytest.CaptureFixture[str]) -> None:
    pipeline, session, _ = chat("a", "/retry", "/CLEAR", "b", "/bye", "c")
    assert session.history == [("b", "b")]
    assert len(pipeline.calls) == 3
    for word in ("stop", "exit", "quit", "/stop", "/exit", "/quit"):
        assert chat(word, "never asked")[0].calls == []
    assert "/retry" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "asked"),
    [
        ("//etc", "/etc"),
        ("/home/x 是什么", "/home/x 是什么"),
        ("/home/", "/home/"),
        ("/*.py 是什么", "/*.py 是什么"),
        ("/* a comment */", "/* a comment */"),
        ("exit code", "exit code"),
        ("1/2", "1/2"),
    ],
)
def test_questions_that_look_like_commands(line: str, asked: str) -> None:
    assert [query for query, _ in chat(line)[1].history] == [asked]


@pytest.mark.parametrize(
    ("line", "note"),
    [
        ("/rety", "did you mean /retry?"),
        ("/帮助", "There is no command /帮助;"),
        ("/", "There is no command /;"),
        ("/hlep me", "did you mean /help?"),
        ("/help!", "did you mean /help?"),
        ("/set:temperature 1", "did you mean /set?"),
        ("/bye.", "did you mean /bye?"),
        ("/x.y", "There is no command /x.y;"),
        ("/?!", "There is no command /?!;"),
    ],
)
def test_unknown_commands_are_answered_here(line: str, note: str, capsys: pytest.CaptureFixture[str]) -> None:
    pipeline, _, code = chat(line)
    assert (pipeline.calls, code) == ([], 0)
    assert note in capsys.readouterr().err
    pipeline, _, code = chat(line, "b", has_person=False)
    assert code == 1
    assert capsys.readouterr().out == "\nb\n"  # a line for each question


def test_an_argument_too_many_or_too_few(capsys: pytest.CaptureFixture[str]) -> None:
    assert chat("/clear all", "/save", "/load")[0].calls == []
    notes = capsys.readouterr().out
    for usage in ("/clear）", "/save FILE）", "/load FILE）"):
        assert f"usage: {usage}" in notes


def test_help_comes_from_the_table_and_fits(capsys: pytest.CaptureFixture[str]) -> None:
    chat("/help", "/?", "help")
    page = capsys.readouterr().out
    for command in COMMANDS:
        assert page.count(f"  {command.usage} ") == 3
        assert command.chinese in page
    for width in (80, 60):
        lines = help_text(width).splitlines()
        assert all(cell_width(line) <= width for line in lines[: len(COMMANDS) + 1])
    assert len(help_text(80).splitlines()) <= 20
    assert all(cell_width(line) <= 80 for line in help_text(80).splitlines())
    assert set(BY_SLASH) > {
        "help",
        "clear",
        "retry",
        "undo",
        "continue",
        "save",
        "load",
        "system",
        "set",
        "info",
        "bye",
    }


def test_undo_brings_the_question_back_to_the_prompt(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines("a", "b", "/undo", "c", "/clear", "/undo", "/undo", "/undo", "/undo")
    talk = make_chat(lines)
    talk.run()
    assert [typed for _, typed in lines.prompts] == ["", "", "", "b", "", "", "", "c", "a", ""]
    assert "rounds restored: 2" in (notes := capsys.readouterr().out)
    assert NOTHING_TO_UNDO in notes


def test_versions_of_an_answer(capsys: pytest.CaptureFixture[str]) -> None:
    _, session, _ = chat("/next", "a", "/prev", "/retry", "/retry", "/prev", "/next", "/next")
    assert len(session.rounds[0].versions) == 3
    assert session.rounds[0].selected == 0
    notes = capsys.readouterr().out
    assert [notes.count(f"answer {place};") for place in ("1/3", "2/3", "3/3")] == [1, 1, 1]


def test_a_cut_answer_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    pipeline, session, _ = chat("abc", "/continue", "long", "/continue")
    assert NOTHING_TO_CONTINUE in (notes := capsys.readouterr().out)
    assert "/continue" in notes  # the note on an answer that was cut
    assert len(pipeline.calls) == 3
    assert pipeline.calls[2][1]["answer_start"] == "long"
    assert session.rounds[-1].reply.text.startswith("long")
    talk = make_chat(Lines("/continue"))
    talk.session.rounds = [Round("a", (Reply("x" * 2048, "length"),))]
    talk.run()
    assert CONTEXT_FULL in capsys.readouterr().out
    full = FakePipeline()
    full.context_limit = 4
    make_chat(Lines("long"), full).run()
    assert CONTEXT_FULL in (notes := capsys.readouterr().out)
    assert "/continue" not in notes


def test_saved_conversations_open_with_what_belongs_to_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    chat("/system 简短回答", "/set temperature 0.5", "一", "二", "/save my chat.json")
    pipeline, session, _ = chat("/load 'my chat.json'", "三", "/load absent.json", "/load .", "/load ~nobody-at-all/x")
    assert session.system == "简短回答"
    assert session.options["temperature"] == 0.5
    session.save("my chat.json")  # what was opened may be replaced
    assert pipeline.calls[0][0] == ["简短回答", "一", "一", "二", "二", "三"]
    streams = capsys.readouterr()
    assert "用户：二\n\nChatGLM-6B：二\n" in streams.out
    assert [line.split("。")[0] for line in streams.err.splitlines()] == [
        "无法读取 absent.json", "无法读取 .", "无法读取 ~nobody-at-all/x",
    ]  # fmt: skip
    messages = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a"},
    ]
    (tmp_path / "openai.json").write_text(json.dumps({"messages": messages}))
    (tmp_path / "bad.json").write_text("{}")
    _, session, _ = chat("x", "/load openai.json", "/load bad.json")
    assert (session.system, session.history) == ("s", [("q", "a")])
    assert "没有名为 history" in capsys.readouterr().err


def test_the_system_instruction(capsys: pytest.CaptureFixture[str]) -> None:
    pipeline, session, _ = chat("/system", "/system 你是诗人\n只写诗", "a", "/system", "/system -", "b")
    assert pipeline.calls[0][0] == ["你是诗人\n只写诗", "a"]
    assert pipeline.calls[1][0] == ["a", "a", "b"]
    assert session.system is None
    assert capsys.readouterr().out.count("no system instruction") == 2


def options_after(*lines: str) -> dict[str, Any]:
    return chat(*lines)[1].options


def test_sampling_changes_without_a_new_load(capsys: pytest.CaptureFixture[str]) -> None:
    pipeline, _, _ = chat(
        "a", "/set temperature 0", "/set top-p .5", "/set --seed 7", "/set SEED", "b", "/set seed -", "c"
    )
    assert [call[1] for call in pipeline.calls] == [
        {}, {"temperature": 0, "top_p": 0.5, "seed": 7}, {"temperature": 0, "top_p": 0.5, "seed": None},
    ]  # fmt: skip
    assert capsys.readouterr().out.count("（seed = 7）") == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/set top_p 2", "top_p must be at least 0 and at most 1, not 2"),
        ("/set temperature hot", "temperature must be at least 0, not 'hot'"),
        ("/set max_length 0", "max_length must be a whole number of at least 1, not 0"),
        ("/set temprature 1", "did you mean temperature?"),
        ("/set verbose perhaps", "It is on or off"),
    ],
)
def test_bad_settings_change_nothing(line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert options_after("/set seed 1", line) == {"seed": 1}
    assert message in capsys.readouterr().err


def test_settings_are_listed_with_what_is_in_force(capsys: pytest.CaptureFixture[str]) -> None:
    chat("/set max_length 9999", "/set verbose on", "/set", "a")
    notes = capsys.readouterr().out
    assert "（max_length = 2048，模型的上限 / limit of the model）" in notes
    for row in ("temperature = 0.95 ", "max_new_tokens = - ", "verbose = on ", "plain = on "):
        assert f"  {row}" in notes
    assert "· answer 1 tokens ·" in notes


def test_information(capsys: pytest.CaptureFixture[str]) -> None:
    chat("/info", "ab", "/set seed 3", "/system 短", "/info")
    first, second = capsys.readouterr().out.split("模型 model")[1:]
    assert "上下文 context   0 / 2048 tokens (0%)" in first
    assert "上次回答 last    -" in first
    for row in ("fp32 on cpu", "7 / 2048 tokens (0%)", "rounds      1", "system  短", "seed 3", "[prompt 5 · answer 2"):
        assert row in second


def test_a_question_in_quotes_may_have_several_lines() -> None:
    lines = Lines('"""', "/help", '  indented"""', '"""one"""', '"""', KeyboardInterrupt(), '""""""')
    talk = make_chat(lines)
    talk.run()
    assert [query for query, _ in talk.session.history] == ["/help\n  indented", "one"]
    assert [label for label, _ in lines.prompts] == [
        "用户：",
        *["... "] * 2,
        "用户：",
        "用户：",
        "... ",
        "用户：",
        "用户：",
    ]
    pipeline, _, _ = chat('"""', '"""a"""', has_person=False)
    assert [call[0][-1] for call in pipeline.calls] == ['"""', '"""a"""']  # one question per line


@pytest.mark.parametrize(("width", "is_demo"), [(w, d) for w in (120, 100, 80, 60, 50) for d in (False, True)])
def test_the_preface_is_short_at_any_width(
    width: int, is_demo: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two lines; the message about memory is the third."""
    monkeypatch.setenv("COLUMNS", str(width))
    pipeline = FakePipeline()
    pipeline.is_demo = is_demo
    talk: TerminalChat = make_chat(Lines(), pipeline)
    talk.greet()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 2
    assert all(cell_width(line) <= width for line in lines)
    assert "".join(lines).replace(" ", "").startswith(BANNER.replace(" ", ""))
    if width >= 80:
        assert ("--model" in lines[1]) == is_demo
        assert "/help" in lines[1]
