"""What a person types: during an answer, in several lines, with Tab, again in the next chat; and Ctrl+Z and SIGTERM."""

from __future__ import annotations

import signal
import stat
import sys
from pathlib import Path

import pytest

from tests.ui.person import ALT_ENTER, BACKSPACE, CTRL_C, CTRL_D, PROMPT, UP, Person

pytestmark = pytest.mark.xdist_group("programs")

ROOT = Path(__file__).parents[2]
CTRL_Z = "\x1a"
PASTE = "\x1b[200~{}\x1b[201~"


def chat(environment: dict[str, str], folder: Path, *flags: str, **variables: str) -> Person:
    """Somebody at the terminal chat of tests/ui/fake_chat.py."""
    argv = [sys.executable, "-c", "from tests.ui.fake_chat import main; main()", *flags]
    own = {"PYTHONPATH": str(ROOT), "CHATGLM_CACHE": str(folder / "state"), **variables}
    return Person(argv, {**environment, **own}, str(folder))


def test_keys_typed_during_an_answer_wait_at_the_prompt(environment: dict[str, str], tmp_path: Path) -> None:
    with chat(environment, tmp_path) as person:
        person.wait_for_prompt()
        person.type("keys 42 answer\r")
        person.wait_for("ChatGLM-6B：answer")
        person.type("二" + BACKSPACE + "三问\r")  # 11 bytes
        person.type(PASTE.format("四\r五") + "\r")  # 20 bytes
        person.type("六" + ALT_ENTER + "七six")  # 11 bytes
        person.wait_for("ChatGLM-6B：三问")  # lines that are complete are sent
        person.wait_for("ChatGLM-6B：四")
        person.wait_for(f"{PROMPT}六")  # another waits for the rest
        person.wait_for("七six")
        assert "ChatGLM-6B：answer" in person.lines  # and nothing behind it
        person.type(CTRL_C)
        person.wait_for_prompt()
        person.type("forever\r")
        person.wait_for("on and on")
        person.type("kept")
        person.type(CTRL_C)
        person.wait_for(f"{PROMPT}kept")
        assert any("已停止" in line for line in person.lines)
        person.type(CTRL_C)  # drops the line
        person.wait_for_prompt()
        person.type(CTRL_D)
        assert person.wait_for_end() == 0
        assert person.has_echo


@pytest.mark.parametrize("line", ["forever\r", "half a question"])
def test_the_terminal_is_itself_again_after_sigterm(line: str, environment: dict[str, str], tmp_path: Path) -> None:
    with chat(environment, tmp_path) as person:
        person.wait_for_prompt()
        assert not person.has_echo
        person.type(line)
        person.wait_for("on and on" if line.endswith("\r") else line)
        person.send_signal(signal.SIGTERM)
        assert person.wait_for_end() == -signal.SIGTERM
        assert person.has_echo
        assert person.text.rpartition("\x1b[?2004")[2].startswith("l")  # pastes have no marks in the shell


def test_a_chat_that_is_stopped_and_brought_back(environment: dict[str, str], tmp_path: Path) -> None:
    """During an answer and at the prompt: the shell finds the terminal as it was, and so does the chat."""
    with chat(environment, tmp_path, "--in-shell") as person:
        person.wait_for_prompt()
        person.type("forever\r")
        person.wait_for("on and on")
        for number in (1, 2):
            person.type(CTRL_Z)
            person.wait_for("stopped, echo True", times=number)
            person.type("\r")
            if number == 1:
                person.wait_until(lambda: not person.has_echo)
                person.type(CTRL_C)
                person.wait_for("已停止")
                person.wait_for_prompt()
        person.wait_until(lambda: not person.has_echo)
        person.type("later\r")
        person.wait_for("ChatGLM-6B：later")
        person.wait_for_prompt()
        person.type("/bye\r")
        assert person.wait_for_end() == 0
        assert person.has_echo


def test_several_lines_and_tab(environment: dict[str, str], tmp_path: Path) -> None:
    """Several lines are one question; Tab completes commands, settings and files."""
    (tmp_path / "对话 one.json").write_text('{"history": [["问", "答"]]}')
    with chat(environment, tmp_path) as person:
        person.wait_for_prompt()
        person.type(PASTE.format("第一行\r第二行") + "\r")
        person.wait_for("ChatGLM-6B：第一行")
        person.wait_for_prompt()
        person.type("甲" + ALT_ENTER + "乙\r")
        person.wait_for("ChatGLM-6B：甲")
        person.wait_for_prompt()
        person.type('"""def f():\r')
        person.wait_for("...")
        person.type('    /help"""\r')
        person.wait_for("ChatGLM-6B：def f():")
        person.wait_for_prompt()
        person.ask("/info")
        assert any(line.startswith("轮数 rounds") and line.endswith(" 3") for line in person.lines)
        assert {"第二行", "乙", "    /help"} <= set(person.lines)
        for typed, shown in (
            ("/he\t", "/help"),
            ("/set repe\t", "/set repetition_penalty"),
            ("/load 对\t", "one.json"),
        ):
            person.type(typed)
            person.wait_for(f"{PROMPT}{shown}" if shown.startswith("/") else shown)
            person.type(CTRL_C)
            person.wait_for_prompt()
        person.type("/load 对\t")
        person.wait_for("/load 对话 one.json", times=2)
        person.type("\r")
        person.wait_for("ChatGLM-6B：答")


def test_the_next_chat_remembers_what_was_typed(environment: dict[str, str], tmp_path: Path) -> None:
    state = tmp_path / "state" / "history"
    with chat(environment, tmp_path, "--no-history") as person:
        person.wait_for_prompt()
        person.ask("not kept")
        assert not state.exists()
    with chat(environment, tmp_path) as person:
        person.wait_for_prompt()
        person.ask("第一问")
        assert stat.S_IMODE(state.stat().st_mode) == 0o600
    state.chmod(0o644)
    with chat(environment, tmp_path) as person:
        person.wait_for_prompt()
        person.type(UP)
        person.wait_for(f"{PROMPT}第一问")
        assert stat.S_IMODE(state.stat().st_mode) == 0o600


def test_without_prompt_toolkit_keys_wait_as_well(environment: dict[str, str], tmp_path: Path) -> None:
    with chat(environment, tmp_path, TERM="dumb") as person:
        person.wait_for_prompt()
        person.type("keys 6 answer\r")
        person.wait_for("ChatGLM-6B：answer")
        person.type("a\rnext")
        person.wait_for("ChatGLM-6B：a", times=2)
        person.wait_for(f"{PROMPT}next")
        assert "ChatGLM-6B：answer" in person.lines
        person.type(BACKSPACE + "\r")
        person.wait_for("ChatGLM-6B：nex")
        person.wait_for_prompt()
        person.type("exit\r")
        assert person.wait_for_end() == 0
        assert person.has_echo


def test_a_table_is_drawn_once_and_colours_can_be_turned_off(environment: dict[str, str], tmp_path: Path) -> None:
    table = ALT_ENTER.join(("|名|二|", "|-|-|", "|**粗**|三四五|", "done"))
    with chat(environment, tmp_path) as person:
        person.wait_for_prompt()
        person.type(table + "\r")
        person.wait_for("done", times=2)
        person.wait_for_prompt()
        rows = [line.replace(" ", "") for line in person.lines if "│" in line or "┼" in line]
        assert rows == ["名│二", "───┼───────", "粗│三四五"]
        assert sum("|名|二|" in line for line in person.lines) == 1  # the question
        assert "\x1b[1m粗" in person.text
        person.ask("/set plain on")
        person.type("**x**\r")
        person.wait_for("ChatGLM-6B：**x**")
    with chat(environment, tmp_path, NO_COLOR="1") as person:
        person.wait_for_prompt()
        person.type("**x**\r")
        person.wait_for("ChatGLM-6B：**x**")
