"""The commands of the terminal chat in one table, from which help, completion and "did you mean" come."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from chatglm.cells import wrap
from chatglm.cli.suggestions import nearest
from chatglm.generation.text import whole_characters
from chatglm.ui.error_texts import BilingualError
from chatglm.ui.notes import CONTEXT_FULL
from chatglm.ui.terminal import parameters
from chatglm.ui.terminal.information import information

if TYPE_CHECKING:
    from chatglm.ui.terminal.terminal_chat import TerminalChat

NOTHING_TO_RETRY = "（还没有可重试的问题 / there is no question to try again）"
NOTHING_TO_UNDO = "（没有可撤销的内容 / there is nothing to take back）"
NOTHING_TO_CONTINUE = "（上一个回答已经完整 / the last answer is complete）"
NOTHING_TO_SAVE = "（对话为空，未保存 / the conversation is empty, nothing was saved）"
ONE_VERSION = "（这个问题只有一个回答；/retry 可再答一次 / there is one answer; /retry gives another）"
NO_SYSTEM = "（没有系统指令 / there is no system instruction）"
KEYS = """\
  Ctrl+C 停止回答 stops an answer   Ctrl+D 退出 leaves   Tab 补全 completes
  Alt+Enter 换行 new line   \"\"\"...\"\"\" 多行 lines   ↑ ↓ 之前的输入 earlier lines
  //... 以 / 开头的问题 a question that begins with /
回答时键入的内容在回答之后生效 / keys pressed during an answer count after it"""
# "save the whales" is a question: the plain word has one word after it, or something in quotes.
PLAIN_SAVE = re.compile(r"""save\s+(?:"([^"\n]+)"|'([^'\n]+)'|(\S+))""")
# "/home/x" and "/* */" are questions.
SLASH = re.compile(r"/([^\s/*]*)(?:\s+(.*))?", re.DOTALL)


@dataclass(frozen=True)
class Command:
    """`/name ARGUMENT`, where an argument in brackets may be absent; each of `words` does the same without a slash."""

    name: str
    argument: str
    chinese: str
    english: str
    run: Callable[[TerminalChat, str], None]
    words: tuple[str, ...] = ()

    @property
    def usage(self) -> str:
        return f"/{self.name} {self.argument}".strip()

    def accepts(self, argument: str) -> bool:
        return bool(self.argument) if argument else not self.argument or self.argument.startswith("[")


def _help(chat: TerminalChat, argument: str) -> None:
    chat.screen.note(help_text(chat.screen.width))


def _clear(chat: TerminalChat, argument: str) -> None:
    chat.cleared = chat.session.transcript
    chat.session.clear()
    chat.screen.clear()
    chat.greet()


def _retry(chat: TerminalChat, argument: str) -> None:
    if chat.session.rounds:
        chat.answer(lambda cancel: chat.session.retry(cancel=cancel))
    else:
        chat.screen.note(NOTHING_TO_RETRY)


def _undo(chat: TerminalChat, argument: str) -> None:
    if chat.session.rounds:
        question = chat.session.undo()
        chat.screen.note(
            f"（已撤销，剩 {len(chat.session.rounds)} 轮 / taken back; rounds left: {len(chat.session.rounds)}）"
        )
        chat.typed = question
    elif chat.cleared is not None and chat.cleared.rounds:
        chat.session.open(chat.cleared)
        chat.screen.note(f"（已恢复 {len(chat.session.rounds)} 轮 / rounds restored: {len(chat.session.rounds)}）")
        chat.cleared = None
    else:
        chat.screen.note(NOTHING_TO_UNDO)


def _continue(chat: TerminalChat, argument: str) -> None:
    rounds = chat.session.rounds
    if not rounds or not rounds[-1].reply.is_cut:
        chat.screen.note(NOTHING_TO_CONTINUE)
    elif chat.session.is_full(rounds[-1]):
        chat.screen.note(CONTEXT_FULL)
    else:
        chat.answer(lambda cancel: chat.session.continue_answer(cancel=cancel), rounds[-1].reply.text)


def _previous(chat: TerminalChat, argument: str) -> None:
    _select(chat, -1)


def _next(chat: TerminalChat, argument: str) -> None:
    _select(chat, 1)


def _select(chat: TerminalChat, step: int) -> None:
    rounds = chat.session.rounds
    if not rounds or len(rounds[-1].versions) < 2:
        chat.screen.note(ONE_VERSION)
        return
    number = (rounds[-1].selected + step) % len(rounds[-1].versions)
    chat.session.select_version(number)
    chat.show_last_answer()


def _save(chat: TerminalChat, name: str) -> None:
    if not chat.session.history:
        chat.screen.note(NOTHING_TO_SAVE)
        return
    chat.screen.note(f"（已保存 / saved: {chat.session.save(_unquoted(name))}）")


def _load(chat: TerminalChat, name: str) -> None:
    name = _unquoted(name)
    try:
        data = Path(name).expanduser().read_bytes()
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BilingualError(f"无法读取 {name}。", f"It cannot be read: {reason}.") from None
    chat.session.load(data, Path(name))
    num_rounds = len(chat.session.rounds)
    chat.screen.note(f"（已打开 {num_rounds} 轮对话 / opened a conversation of {num_rounds} rounds）")
    if chat.session.system:
        _show_system(chat)
    if num_rounds:
        chat.screen.note(f"\n用户：{chat.session.rounds[-1].question}")
        chat.show_last_answer()


def _system(chat: TerminalChat, text: str) -> None:
    if text:
        chat.session.system = None if text == "-" else whole_characters(text)
    _show_system(chat)


def _show_system(chat: TerminalChat) -> None:
    chat.screen.note(f"（系统指令 / system: {chat.session.system}）" if chat.session.system else NO_SYSTEM)


def _set(chat: TerminalChat, argument: str) -> None:
    if not argument:
        chat.screen.note(parameters.table(chat))
        return
    name, _, value = argument.partition(" ")
    chat.screen.note(parameters.change(chat, name, value.strip()))


def _info(chat: TerminalChat, argument: str) -> None:
    chat.screen.note(information(chat))


def _bye(chat: TerminalChat, argument: str) -> None:
    chat.is_over = True


COMMANDS = (
    Command("help", "", "显示本帮助", "show this help", _help, ("help",)),
    Command("clear", "", "清空对话并清屏", "forget the conversation", _clear, ("clear",)),
    Command("retry", "", "重新回答上一个问题", "answer the last question again", _retry, ("retry",)),
    Command("prev", "", "改用 /retry 之前的回答", "the version before", _previous),
    Command("next", "", "改用之后的回答", "the version after", _next),
    Command("undo", "", "撤销上一轮（可改写问题）或 /clear", "a round or /clear", _undo),
    Command("continue", "", "续写被截断的回答", "go on with a cut answer", _continue),
    Command("save", "FILE", "存为 JSON（可再打开）或 Markdown", "*.json or Markdown", _save),
    Command("load", "FILE", "打开 JSON 或 OpenAI messages", "open a *.json", _load),
    Command("system", "[TEXT|-]", "查看、设置或清除系统指令", "show, set, clear", _system),
    Command("set", "[NAME VALUE]", "查看或修改采样参数", "show or change sampling", _set),
    Command("info", "", "模型、精度、上下文、速度", "model, context, speed", _info),
    Command("bye", "", "退出", "leave", _bye, ("stop", "exit", "quit")),
)
BY_SLASH = {name: command for command in COMMANDS for name in (command.name, *command.words)} | {"?": COMMANDS[0]}
BY_WORD = {word: command for command in COMMANDS for word in command.words}
SAVE = BY_SLASH["save"]


def run_line(chat: TerminalChat, line: str) -> None:
    """Run a command, or ask the line as a question."""
    if (command := BY_WORD.get(line)) is not None:
        command.run(chat, "")
    elif match := PLAIN_SAVE.fullmatch(line):
        _save(chat, next(filter(None, match.groups())))
    elif line == SAVE.name:
        chat.screen.note(usage_note(SAVE))
    elif line.startswith("//"):
        chat.ask(line[1:])
    elif match := SLASH.fullmatch(line):
        _run_slash(chat, match[1].lower(), (match[2] or "").strip())
    else:
        chat.ask(line)


def _run_slash(chat: TerminalChat, name: str, argument: str) -> None:
    command = BY_SLASH.get(name)
    if command is None:
        chat.reject(unknown_note(name))
    elif command.accepts(argument):
        command.run(chat, argument)
    else:
        chat.screen.note(usage_note(command))


def usage_note(command: Command) -> str:
    """For a command with an argument too many or too few."""
    return f"（用法 / usage: {command.usage}）"


def unknown_note(name: str) -> str:
    """For a name that is not in the table."""
    meant = nearest(name, BY_SLASH) or nearest(re.split(r"[^\w-]", name)[0], BY_SLASH)
    chinese, english = (f"是不是 /{meant}？", f"did you mean /{meant}? ") if meant else ("", "")
    return (
        f"没有命令 /{name}。{chinese}/help 列出全部；以 // 开头则作为问题发送\n"
        f"There is no command /{name}; {english}/help lists all; begin with // to send it as a question"
    )


def help_text(width: int) -> str:
    """The table of commands, and the keys."""
    words = ", ".join(BY_WORD)
    lines = wrap(f"也可不带斜杠 without a slash too: {words}, save FILE", width)
    column = max(len(command.usage) for command in COMMANDS) + 4
    for command in COMMANDS:
        start = f"  {command.usage}".ljust(column)
        lines += wrap(f"{start}{command.chinese} / {command.english}", width, " " * column)
    return "\n".join([*lines, "", KEYS])


def _unquoted(name: str) -> str:
    return name[1:-1] if len(name) > 2 and name[0] == name[-1] and name[0] in "\"'" else name
