"""The terminal chat as people meet it: `python cli_demo.py` in a real pseudo-terminal, in pipes, with a real model.

Ids CLI-01 to CLI-06 are those of upstream's behaviour; each test that covers one names it.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from chatglm.cli.flags import ANSWER_FLAGS, MODEL_FLAGS, TERMINAL_FLAGS
from chatglm.cli.loading import LOADING, LOADING_CANCELLED
from chatglm.loading.sources import LICENCE_NOTICE
from chatglm.ui.terminal.terminal_chat import DEMO_HINT, DEMO_NOTE, HOW_TO_LEAVE
from tests import forking
from tests.ui.person import ALT_ENTER, BACKSPACE, CTRL_C, CTRL_D, UP, Person

pytestmark = pytest.mark.xdist_group("programs")

ROOT = Path(__file__).parents[2]
SCRIPT = str(ROOT / "cli_demo.py")
BANNER = "欢迎使用 ChatGLM-6B 模型，输入内容即可进行对话，clear 清空对话历史，stop 终止程序"
# The demo model is replaced by the tiny one: only the path through the program is tested.
TINY_AS_DEMO_WITHOUT_PROMPT_TOOLKIT = (
    "import sys, pathlib, chatglm.demo; chatglm.demo.CHECKPOINT = pathlib.Path(sys.argv.pop(1));"
    "sys.modules['prompt_toolkit'] = None; from chatglm.ui.terminal.terminal_app import main; sys.exit(main())"
)


def command(folder: Path, *flags: str) -> list[str]:
    return [sys.executable, SCRIPT, "--model", str(folder), "--seed", "1", *flags]


def run_script(environment: dict[str, str], *flags: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run the script with pipes on all sides."""
    argv = [sys.executable, SCRIPT, *flags]
    return forking.run(argv, input=stdin, capture_output=True, env=environment, cwd=ROOT)


@pytest.fixture
def person(tiny_folder: Path, environment: dict[str, str], tmp_path: Path) -> Iterator[Person]:
    """Somebody at the first prompt of a chat whose answers are short."""
    flags = ("--max-length", "60", "--top-p", "0.01", "--verbose")
    with Person(command(tiny_folder, *flags), environment, str(tmp_path)) as somebody:
        somebody.wait_for_prompt()
        yield somebody


def test_a_chat_with_every_command(person: Person, tmp_path: Path) -> None:
    """CLI-01 banner, CLI-02 prompt, CLI-03 clear and stop, CLI-06 empty input is ignored; help, retry, save."""
    assert BANNER in person.lines
    assert person.lines[person.lines.index("用户：") - 1] == ""

    person.type("你好吗" + BACKSPACE + "\r")  # a wide character goes as a whole
    person.wait_for("[prompt ")
    person.wait_for_prompt()
    assert "用户：你好" in person.lines
    label = next(index for index, line in enumerate(person.lines) if line.startswith("ChatGLM-6B："))
    assert person.lines[label - 1] == ""

    person.type("   \r")  # is no question
    person.type("retry\r")
    person.wait_for("[prompt ", times=2)
    person.wait_for_prompt()
    assert person.text.count("ChatGLM-6B：") == 2

    person.ask("help")
    for name in ("clear", "retry", "save FILE", "help", "stop", "Ctrl+C"):
        assert any(name in line for line in person.lines), name

    person.ask("save chat.json")
    [[query, answer]] = json.loads((tmp_path / "chat.json").read_text(encoding="utf-8"))["history"]
    assert query == "你好"
    assert answer

    person.ask("clear")
    assert person.lines[0] == BANNER
    assert not any("ChatGLM-6B：" in line for line in person.lines)
    person.ask("save chat.json")
    person.wait_for("对话为空")
    person.type(" stop \r")
    assert person.wait_for_end() == 0


def test_ctrl_c_at_the_prompt_drops_the_line(person: Person, tmp_path: Path) -> None:
    """CLI-05: upstream's handler, once installed, cancelled the next answer instead."""
    person.type("不要这一行")
    person.wait_for("不要这一行")
    person.type(CTRL_C)
    person.wait_for(HOW_TO_LEAVE)
    person.wait_for_prompt()
    person.type("两" + ALT_ENTER + "行\r")
    person.wait_for("[prompt ")
    person.wait_for_prompt()
    person.type(UP + "\r")  # the history of this session
    person.wait_for("[prompt ", times=2)
    person.wait_for_prompt()
    person.ask("save 'my chat.json'")
    history = json.loads((tmp_path / "my chat.json").read_text(encoding="utf-8"))["history"]
    assert [query for query, _ in history] == ["两\n行", "两\n行"]
    person.type(CTRL_D)
    assert person.wait_for_end() == 0


def test_ctrl_c_stops_an_answer_and_keeps_its_text(
    tiny_folder: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    """CLI-04 text is appended and never redrawn; CLI-05 at any moment, and the program goes on."""
    with Person(command(tiny_folder, "--temperature", "0"), environment, str(tmp_path)) as person:
        person.wait_for_prompt()
        for number in (1, 2):
            num_chunks = len(person.chunks)
            person.type("长\r")
            person.wait_for("ChatGLM-6B：", times=number)
            while len(person.chunks) < num_chunks + 8:  # the answer comes in pieces
                person.read_some()
            person.type(CTRL_C)
            person.wait_for("已停止", times=number)
            person.wait_for_prompt()
        assert "\x1b[2J" not in person.text  # nothing was cleared
        person.ask("save chat.json")
        history = json.loads((tmp_path / "chat.json").read_text(encoding="utf-8"))["history"]
        assert [query for query, _ in history] == ["长", "长"]
        assert all(answer for _, answer in history)
        person.type("stop\r")
        assert person.wait_for_end() == 0


def test_ctrl_c_while_loading_leaves_with_a_message(tiny_folder: Path, environment: dict[str, str]) -> None:
    with Person(command(tiny_folder), environment, preload=()) as person:  # importing torch takes long enough
        person.wait_for(LOADING)
        person.type(CTRL_C)
        assert person.wait_for_end() == 130
        assert LOADING_CANCELLED in person.lines
        assert person.has_echo
        assert "Traceback" not in person.text


def test_a_terminal_that_understands_no_escape_codes(
    tiny_folder: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    """The first start of all, with the notice on the licence in the preface."""
    argv = command(tiny_folder, "--max-length", "20")
    fresh = {**environment, "TERM": "dumb", "CHATGLM_CACHE": str(tmp_path / "cache")}
    with Person(argv, fresh, str(tmp_path), columns=80) as person:
        person.wait_for_prompt()
        memory, first, second = person.lines[: person.lines.index("")]
        assert memory.startswith("fp32 on cpu: needs ")
        assert f"{first}{second}".replace(" ", "") == f"{BANNER}；{LICENCE_NOTICE}；/help".replace(" ", "")
        person.type(CTRL_C)
        person.wait_for(HOW_TO_LEAVE)
        person.wait_for_prompt()
        person.ask("你好")
        person.wait_for("长度上限")
        person.ask("save chat.md")
        assert "**用户：**\n\n你好\n" in (tmp_path / "chat.md").read_text(encoding="utf-8")
        person.type(CTRL_D)
        assert person.wait_for_end() == 0
        assert "\x1b[" not in person.text


def test_the_demo_model_says_what_it_is(tiny_folder: Path, environment: dict[str, str]) -> None:
    """Also without prompt_toolkit."""
    argv = [sys.executable, "-c", TINY_AS_DEMO_WITHOUT_PROMPT_TOOLKIT, str(tiny_folder), "--max-length", "20"]
    with Person(argv, {**environment, "PYTHONPATH": str(ROOT)}) as person:
        person.wait_for_prompt()
        memory, banner, demo = person.lines[: person.lines.index("")]  # three lines; that on the load is gone
        assert memory.startswith("fp32 on cpu: needs ")
        assert banner == BANNER
        assert demo == DEMO_HINT
        assert LOADING in person.text
        person.ask("你好")
        person.wait_for("长度上限")
        person.type("stop\r")
        assert person.wait_for_end() == 0


def test_the_embedded_model_answers_in_a_fresh_process(environment: dict[str, str]) -> None:
    argv = [sys.executable, SCRIPT, "--prompt", "你好", "--temperature", "0"]
    result = subprocess.run(argv, capture_output=True, env=environment, cwd=ROOT, timeout=240, check=False)
    assert result.returncode == 0
    assert "你好" in result.stdout.decode()
    memory, demo = result.stderr.decode().splitlines()
    assert memory.startswith("fp32 on cpu: needs ")
    assert demo == DEMO_NOTE


def test_pipe(tiny_folder: Path, environment: dict[str, str]) -> None:
    """One question per line; CLI-06: bytes that are no text do not end the program."""
    flags = ("--model", str(tiny_folder), "--temperature", "0", "--max-length", "40")
    result = run_script(
        environment, *flags, stdin="你好\n\n".encode() + b"\xff\xfe bytes\r\nhelp\nclear\n" + "你好".encode()
    )
    first, second, third = result.stdout.decode().splitlines()
    assert first
    assert second
    assert third == first  # `clear` forgot the rounds between; `help` went to stderr
    notes = result.stderr.decode()
    assert BANNER in notes
    assert "retry" in notes
    assert "Traceback" not in notes
    assert result.returncode == 0


def test_prompt_flag_and_streams_that_cannot_show_chinese(tiny_folder: Path, environment: dict[str, str]) -> None:
    flags = ("--model", str(tiny_folder), "--prompt", "你好", "--seed", "1", "--max-length", "300")
    result = run_script({**environment, "PYTHONIOENCODING": "ascii"}, *flags)
    assert result.returncode == 0
    assert result.stdout.isascii()
    assert b"?" in result.stdout
    assert result.stdout.endswith(b"\n")
    assert b"length limit" in result.stderr
    assert b"clear" not in result.stderr  # no banner


def start_script(
    folder: Path, environment: dict[str, str], *flags: str, stdout: int | IO[bytes] = subprocess.PIPE
) -> forking.Popen:
    """Start the script with pipes for its output."""
    return forking.Popen(command(folder, *flags), stdout=stdout, stderr=subprocess.PIPE, env=environment)


def test_answers_arrive_while_they_are_made(tiny_folder: Path, environment: dict[str, str]) -> None:
    """The first bytes are here while the program still runs, and Ctrl+C ends it: no person can continue."""
    with start_script(tiny_folder, environment, "--prompt", "你好", "--temperature", "0") as program:
        assert program.stdout is not None
        assert program.stdout.read(1)
        program.send_signal(signal.SIGINT)
        _, notes = program.communicate(timeout=240)
    assert program.returncode == 130
    assert "已停止" in notes.decode()


def test_a_reader_that_leaves_early(tiny_folder: Path, environment: dict[str, str]) -> None:
    with start_script(tiny_folder, environment, "--prompt", "你好", "--temperature", "0") as program:
        assert program.stdout is not None
        assert program.stderr is not None
        program.stdout.read(1)
        program.stdout.close()
        notes = program.stderr.read().decode()
    assert program.returncode == 1
    assert "Traceback" not in notes
    assert "Exception" not in notes


def test_a_full_disk(tiny_folder: Path, environment: dict[str, str]) -> None:
    with (
        open("/dev/full", "wb") as full,
        start_script(tiny_folder, environment, "--prompt", "你", stdout=full) as program,
    ):
        assert program.stderr is not None
        notes = program.stderr.read().decode()
    assert program.returncode == 1
    assert "No space left on device" in notes
    assert "Traceback" not in notes


def test_help_is_complete_and_light(environment: dict[str, str]) -> None:
    """Every flag with its variable is there, and no heavy library was imported to show it."""
    spy = (
        "import sys\nfrom chatglm.ui.terminal.terminal_app import main\ntry: main(['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert not {'torch', 'transformers', 'numpy', 'prompt_toolkit'} & set(sys.modules)"
    )
    argv = [sys.executable, "-c", spy]
    result = subprocess.run(argv, capture_output=True, env=environment, cwd=ROOT, timeout=240, check=False)
    assert result.returncode == 0, result.stderr.decode()
    page = result.stdout.decode()
    flags = (*MODEL_FLAGS, *ANSWER_FLAGS, *TERMINAL_FLAGS)
    for flag in flags:
        assert f"{flag.name} {flag.metavar}" in page or f"{flag.name}, --no-{flag.key}" in page
        assert f"${flag.variable}" in page
    assert page.count("(default: ") == len(flags) + 1
    for name in ("--prompt", "--help"):
        assert name in page
