"""The terminal chat: reads lines, runs commands, shows answers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import closing, suppress
from typing import TYPE_CHECKING

from chatglm.cells import wrap
from chatglm.cli.signals import INTERRUPTED, cancel_on_interrupt
from chatglm.errors import ChatGLMError
from chatglm.ui.notes import notes_on
from chatglm.ui.session import ChatSession
from chatglm.ui.terminal.commands import run_line
from chatglm.ui.terminal.information import figures_of
from chatglm.ui.terminal.line_readers import USER_LABEL, Reader
from chatglm.ui.terminal.screen import Screen

if TYPE_CHECKING:
    from chatglm.generation.deltas import Delta
    from chatglm.pipeline import Pipeline
    from chatglm.ui.transcript import Transcript

BANNER = "欢迎使用 ChatGLM-6B 模型，输入内容即可进行对话，clear 清空对话历史，stop 终止程序"
HINT = "/help 全部命令 all commands；Ctrl+C 停止回答 stops an answer"
DEMO_NOTE = (
    "随附的迷你演示模型，常答错；真正的模型：--model 文件夹 / "
    "bundled toy model, often wrong; the real one: --model FOLDER"
)
DEMO_HINT = "演示模型 toy demo，真模型 real: --model FOLDER；/help 命令 commands"
HOW_TO_LEAVE = "（输入 /bye 或按 Ctrl+D 退出 / type /bye or press Ctrl+D to leave）"
CONTINUATION_LABEL = "... "
QUOTES = '"""'


class TerminalChat:
    """One run of the chat.

    Attributes:
        typed: what stands in the next prompt already.
        cleared: the conversation before the last /clear.
        is_over: whether the person wants to leave.

    Args:
        session: with the model.
        screen: where to write.
        reader: where questions come from.
        pipeline: the model, for what can be known of it.
        is_verbose: show tokens, speed and finish reason after each answer.
    """

    def __init__(
        self, session: ChatSession, screen: Screen, reader: Reader, pipeline: Pipeline, *, is_verbose: bool = False
    ) -> None:
        self.session, self.screen, self.pipeline = session, screen, pipeline
        self.is_verbose = is_verbose
        self.typed = ""
        self.cleared: Transcript | None = None
        self.is_over = False
        self._reader = reader
        self._has_failed = False

    def greet(self, *notices: str) -> None:
        """On a terminal of 80 columns at most two lines, notices of a first start included; the load has written one.

        On a narrower one hints are left out, but no notice.
        """
        banner = "；".join((BANNER, *notices))
        if not self.screen.is_terminal:
            self.screen.note(banner)
            return
        hint = "/help" if notices else DEMO_HINT if self.pipeline.is_demo else HINT
        for text in (f"{BANNER}\n{'；'.join((*notices, hint))}", f"{banner}；{hint}", f"{banner}；/help", banner):
            if len(wrap(text, self.screen.width)) <= 2:
                break
        self.screen.note(text)

    def run(self) -> int:
        """Read lines until there are no more; returns the exit code.

        For a person that is 0: they saw what failed. A pipe gets 1 if any question failed, 130 after Ctrl+C.
        """
        while not self.is_over:
            try:
                self._run_line(self._read())
            except EOFError:
                if self.screen.has_person:
                    self.screen.note("")
                break
            except KeyboardInterrupt:
                if not self.screen.has_person:
                    return INTERRUPTED
                self.screen.note(HOW_TO_LEAVE)
        return int(self._has_failed and not self.screen.has_person)

    def answer_once(self, query: str) -> int:
        """Answer one question; returns the exit code."""
        try:
            self.ask(query)
        except KeyboardInterrupt:
            return INTERRUPTED
        return int(self._has_failed)

    def ask(self, query: str) -> None:
        self.answer(lambda cancel: self.session.ask(query, cancel))

    def answer(self, start: Callable[[threading.Event], Generator[Delta]], earlier: str = "") -> None:
        """Show an answer while it is generated, then the notes on it; `earlier` is what it goes on with."""
        with cancel_on_interrupt() as cancel:
            self.screen.begin_answer(earlier)
            try:
                # Ctrl+C pressed again raises KeyboardInterrupt: it does not wait for the network's current step.
                with suppress(KeyboardInterrupt), closing(start(cancel)) as deltas:
                    for delta in deltas:
                        self.screen.show(delta.text)
            except ChatGLMError as error:
                self.screen.end_answer()
                self._fail(str(error))
                return
            self.screen.end_answer()
            self._show_notes()
        if cancel.is_set() and not self.screen.has_person:
            raise KeyboardInterrupt  # no person could continue

    def show_last_answer(self) -> None:
        """The valid answer to the last question, and which version it is."""
        round_ = self.session.rounds[-1]
        self.screen.begin_answer()
        self.screen.show(round_.reply.text)
        self.screen.end_answer()
        if len(round_.versions) > 1:
            place = f"{round_.selected + 1}/{len(round_.versions)}"
            self.screen.note(f"（第 {place} 个回答，/prev /next 切换 / answer {place}; /prev and /next choose）")

    def reject(self, message: str) -> None:
        """Tell of a line that is no question; a pipe, which gets a line for each question, gets an empty one."""
        if not self.screen.has_person:
            self.screen.end_answer()
        self._fail(message)

    def _read(self) -> str:
        """A line, or several from \"\"\" to \"\"\"."""
        typed, self.typed = self.typed, ""
        line = self._reader.read(USER_LABEL, typed)
        if self.screen.has_person and line.lstrip().startswith(QUOTES):
            while not _is_closed(line):
                line += "\n" + self._reader.read(CONTINUATION_LABEL).rstrip("\n")
        return line.strip()

    def _run_line(self, line: str) -> None:
        if self.screen.has_person and _is_closed(line):
            line = line.removeprefix(QUOTES).removesuffix(QUOTES).strip("\n")
            if line.strip():
                self.ask(line)
        elif line:
            try:
                run_line(self, line)
            except ChatGLMError as error:
                self._fail(str(error))

    def _show_notes(self) -> None:
        reply = self.session.last_reply
        assert reply is not None
        rounds, option = self.session.rounds, "/set max_length, /continue" if self.screen.has_person else "--max-length"
        is_full = bool(rounds) and rounds[-1].reply is reply and self.session.is_full(rounds[-1])
        for note in notes_on(reply, option, is_full=is_full):
            self.screen.note(note)
        if self.is_verbose:
            self.screen.note(figures_of(reply))

    def _fail(self, message: str) -> None:
        self._has_failed = True
        self.screen.error(message)


def _is_closed(text: str) -> bool:
    text = text.strip()
    return len(text) >= 2 * len(QUOTES) and text.startswith(QUOTES) and text.endswith(QUOTES)
