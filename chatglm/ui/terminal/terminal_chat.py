"""The terminal chat: reads lines, runs commands, shows answers."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Generator
from contextlib import closing, suppress
from typing import TYPE_CHECKING

from chatglm.cli.signals import INTERRUPTED, cancel_on_interrupt
from chatglm.errors import ChatGLMError
from chatglm.ui.notes import notes_on
from chatglm.ui.rounds import Reply
from chatglm.ui.session import ChatSession
from chatglm.ui.terminal.line_readers import Reader
from chatglm.ui.terminal.screen import Screen

if TYPE_CHECKING:
    from chatglm.generation.deltas import Delta

BANNER = "欢迎使用 ChatGLM-6B 模型，输入内容即可进行对话，clear 清空对话历史，stop 终止程序"
HINT = """\
输入 help 查看全部命令；回答时按 Ctrl+C 停止
Type help for all commands; Ctrl+C stops an answer; stop leaves"""
# At most 80 columns, where a Chinese character takes two.
HELP = """\
命令须独占一行，区分大小写；其他内容都作为问题发给模型。
A command stands alone on its line, in lower case; the rest goes to the model.

  clear      清空对话历史并清屏
             forget the conversation and clear the screen
  retry      换一次采样，重新回答上一个问题
             answer the last question again, sampled anew
  save FILE  保存对话：*.json 存为 JSON，其余为 Markdown；文件名含空格时加引号；
             不覆盖已有文件（本次运行保存的除外）
             save the conversation, as JSON (*.json) or Markdown (other names);
             quote a name with spaces; only files saved in this run are replaced
  help       显示本帮助 / show this help
  stop       终止程序 / leave the program

  Ctrl+C     回答时：停止并保留已有内容；输入时：放弃当前行
             stop the answer and keep its text; while typing: drop the line
  Ctrl+D     终止程序 / leave the program
  Alt+Enter  换行 / new line
  ↑ ↓        之前输入的内容 / earlier lines"""
HOW_TO_LEAVE = "（输入 stop 或按 Ctrl+D 终止程序 / type stop or press Ctrl+D to leave）"
NOTHING_TO_RETRY = "（还没有可重试的问题 / there is no question to try again）"
NOTHING_TO_SAVE = "（对话为空，未保存 / the conversation is empty, nothing was saved）"
HOW_TO_SAVE = "（用法 / usage: save FILE）"
# "save the whales" is a question: a command has one word after it, or something in quotes.
SAVE = re.compile(r"""save\s+(?:"([^"\n]+)"|'([^'\n]+)'|(\S+))""")


class TerminalChat:
    """One run of the chat.

    Args:
        session: with the model.
        screen: where to write.
        reader: where questions come from.
        is_verbose: show tokens, speed and finish reason after each answer.
    """

    def __init__(self, session: ChatSession, screen: Screen, reader: Reader, *, is_verbose: bool = False) -> None:
        self._session, self._screen, self._reader = session, screen, reader
        self._is_verbose = is_verbose
        self._has_failed = False
        self._commands: dict[str, Callable[[], None]] = {
            "clear": self._clear,
            "retry": self._retry,
            "help": lambda: screen.note(HELP),
            "save": lambda: screen.note(HOW_TO_SAVE),
        }

    def greet(self) -> None:
        self._screen.note(BANNER)
        if self._screen.is_terminal:
            self._screen.note(HINT)

    def run(self) -> int:
        """Read lines until there are no more; returns the exit code.

        For a person that is 0: they saw what failed. A pipe gets 1 if any question failed, 130 after Ctrl+C.
        """
        while True:
            try:
                line = self._reader.read().strip()
                if line == "stop":
                    break
                if line:
                    self._run_line(line)
            except EOFError:
                if self._screen.has_person:
                    self._screen.note("")
                break
            except KeyboardInterrupt:
                if not self._screen.has_person:
                    return INTERRUPTED
                self._screen.note(HOW_TO_LEAVE)
        return int(self._has_failed and not self._screen.has_person)

    def answer_once(self, query: str) -> int:
        """Answer one question; returns the exit code."""
        try:
            self._ask(query)
        except KeyboardInterrupt:
            return INTERRUPTED
        return int(self._has_failed)

    def _run_line(self, line: str) -> None:
        if command := self._commands.get(line):
            command()
        elif match := SAVE.fullmatch(line):
            self._save(next(filter(None, match.groups())))
        else:
            self._ask(line)

    def _clear(self) -> None:
        self._session.clear()
        self._screen.clear()
        self._screen.note(BANNER)

    def _ask(self, query: str) -> None:
        self._answer(lambda cancel: self._session.ask(query, cancel))

    def _retry(self) -> None:
        if self._session.rounds:
            self._answer(lambda cancel: self._session.retry(cancel=cancel))
        else:
            self._screen.note(NOTHING_TO_RETRY)

    def _save(self, name: str) -> None:
        if not self._session.history:
            self._screen.note(NOTHING_TO_SAVE)
            return
        try:
            self._screen.note(f"（已保存 / saved: {self._session.save(name)}）")
        except ChatGLMError as error:
            self._fail(error)

    def _answer(self, start: Callable[[threading.Event], Generator[Delta]]) -> None:
        """Show an answer while it is generated, then the notes on it."""
        with cancel_on_interrupt() as cancel:
            self._screen.begin_answer()
            try:
                # Ctrl+C pressed again raises KeyboardInterrupt: it does not wait for the network's current step.
                with suppress(KeyboardInterrupt), closing(start(cancel)) as deltas:
                    for delta in deltas:
                        self._screen.show(delta.text)
            except ChatGLMError as error:
                self._screen.end_answer()
                self._fail(error)
                return
            self._screen.end_answer()
            self._show_notes()
        if cancel.is_set() and not self._screen.has_person:
            raise KeyboardInterrupt  # no person could continue

    def _show_notes(self) -> None:
        reply = self._session.last_reply
        assert reply is not None
        for note in notes_on(reply, "--max-length"):
            self._screen.note(note)
        if self._is_verbose:
            self._screen.note(figures_of(reply))

    def _fail(self, error: ChatGLMError) -> None:
        self._has_failed = True
        self._screen.error(str(error))


def figures_of(reply: Reply) -> str:
    """Tokens, time to the first token, speed after it, and finish reason in one line."""
    speed = f"{reply.latest_s:.2f} s"
    if reply.tokens_per_second is not None:
        speed = f"first {reply.first_s:.2f} s · {reply.tokens_per_second:.1f} tokens/s"
    counts = f"prompt {reply.prompt_tokens} · answer {reply.completion_tokens} tokens"
    return f"[{counts} · {speed} · {reply.finish_reason}]"
