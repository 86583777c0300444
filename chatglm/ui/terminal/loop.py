"""The loop of the terminal chat: read a line, obey it or answer it, say what is worth knowing.

Knows: the commands and all sentences of the chat. Does not know how lines are read, answers made or models loaded.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from chatglm.cli.signals import INTERRUPTED, cancel_on_interrupt
from chatglm.errors import ChatGLMError
from chatglm.ui.conversation import Answer, Conversation
from chatglm.ui.terminal.reading import Reader
from chatglm.ui.terminal.screen import Screen
from chatglm.ui.transcript import save_transcript

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
STOPPED = "（已停止，保留已有内容 / stopped; the text so far is kept）"
STOPPED_EMPTY = "（已停止，尚无内容 / stopped before there was any text）"
LENGTH_REACHED = "（已达到长度上限 / the answer reached the length limit, see --max-length）"
EMPTY_ANSWER = "（回答为空 / the answer is empty）"
# "save the whales" is a question: a command has one word after it, or something in quotes.
SAVE = re.compile(r"""save\s+(?:"([^"\n]+)"|'([^'\n]+)'|(\S+))""")


class Session:
    """One run of the chat.

    Args:
        conversation: with the model.
        screen: where to write.
        reader: where questions come from.
        is_verbose: say how long each answer took and why it ended.
    """

    def __init__(self, conversation: Conversation, screen: Screen, reader: Reader, *, is_verbose: bool = False) -> None:
        self._conversation, self._screen, self._reader = conversation, screen, reader
        self._is_verbose = is_verbose
        self._has_failed = False
        self._saved: set[Path] = set()
        self._commands: dict[str, Callable[[], None]] = {
            "clear": self._clear,
            "retry": self._retry,
            "help": lambda: screen.note(HELP),
            "save": lambda: screen.note(HOW_TO_SAVE),
        }

    def greet(self) -> None:
        """Say who is here."""
        self._screen.note(BANNER)
        if self._screen.is_terminal:
            self._screen.note(HINT)

    def run(self) -> int:
        """Take lines until there are no more; returns the exit code.

        For a person that is 0: they saw what failed. A pipe gets 1 if any question failed, 130 after Ctrl+C.
        """
        while True:
            try:
                line = self._reader.read().strip()
                if line == "stop":
                    break
                if line:
                    self._take(line)
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

    def _take(self, line: str) -> None:
        if command := self._commands.get(line):
            command()
        elif match := SAVE.fullmatch(line):
            self._save(next(filter(None, match.groups())))
        else:
            self._ask(line)

    def _clear(self) -> None:
        self._conversation.clear()
        self._screen.clear()
        self._screen.note(BANNER)

    def _ask(self, query: str) -> None:
        self._answer(lambda show, cancel: self._conversation.ask(query, show, cancel))

    def _retry(self) -> None:
        if not self._conversation.can_retry:
            self._screen.note(NOTHING_TO_RETRY)
            return
        self._answer(self._conversation.retry)

    def _save(self, name: str) -> None:
        if not self._conversation.history:
            self._screen.note(NOTHING_TO_SAVE)
            return
        try:
            path = Path(name).expanduser().resolve()
            conversation = self._conversation
            save_transcript(
                path,
                conversation.history,
                conversation.model_name,
                conversation.options.get("system"),
                may_replace=path in self._saved,
            )
        except ChatGLMError as error:
            self._fail(error)
        except (OSError, RuntimeError, ValueError) as error:  # no such home folder, a loop of links, a name with NUL
            self._fail(ChatGLMError(f"无法保存到 {name}。", f"Cannot save there: {error}."))
        else:
            self._saved.add(path)
            self._screen.note(f"（已保存 / saved: {path}）")

    def _answer(self, make: Callable[[Callable[[Delta], None], threading.Event], Answer]) -> None:
        """Show an answer as it is made, then what is worth knowing about it."""
        watch = Stopwatch()

        def show(delta: Delta) -> None:
            watch.tick()
            self._screen.show(delta.text)

        with cancel_on_interrupt() as cancel:
            self._screen.begin_answer()
            try:
                answer = make(show, cancel)
            except ChatGLMError as error:
                self._screen.end_answer()
                self._fail(error)
                return
            self._screen.end_answer()
            for note in notes_on(answer):
                self._screen.note(note)
            if self._is_verbose:
                self._screen.note(figures_of(answer, watch))
        if cancel.is_set() and not self._screen.has_person:
            raise KeyboardInterrupt  # nobody is there to go on with

    def _fail(self, error: ChatGLMError) -> None:
        self._has_failed = True
        self._screen.error(str(error))


def notes_on(answer: Answer) -> list[str]:
    """What the person would otherwise wonder about."""
    notes = []
    if answer.finish_reason == "cancelled":
        notes.append(STOPPED if answer.text else STOPPED_EMPTY)
    elif answer.finish_reason == "length":
        notes.append(LENGTH_REACHED)
    elif not answer.text:
        notes.append(EMPTY_ANSWER)
    if num := answer.dropped_rounds:
        notes.append(f"（上下文已满，最早的 {num} 轮未计入 / the context is full, oldest rounds left out: {num}）")
    return notes


def figures_of(answer: Answer, watch: Stopwatch) -> str:
    """Tokens, speed and finish reason in one line."""
    counts = f"prompt {answer.prompt_tokens} · answer {answer.completion_tokens} tokens"
    return f"[{counts} · {watch.describe(answer.completion_tokens)} · {answer.finish_reason}]"


class Stopwatch:
    """When the first and the latest token of an answer came."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._first: float | None = None
        self._latest = self._start

    def tick(self) -> None:
        """A delta came."""
        self._latest = time.perf_counter()
        if self._first is None:
            self._first = self._latest

    def describe(self, num_tokens: int) -> str:
        """The wait for the first token, and tokens/s after it: the first costs the whole prompt, so it stands apart."""
        if self._first is None or num_tokens < 2:
            return f"{self._latest - self._start:.2f} s"
        speed = (num_tokens - 1) / max(self._latest - self._first, 1e-9)
        return f"first {self._first - self._start:.2f} s · {speed:.1f} tokens/s"
