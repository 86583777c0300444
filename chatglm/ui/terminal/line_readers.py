"""Reading lines: edited with prompt_toolkit on a terminal, plainly from anything else."""

from __future__ import annotations

import sys
from contextlib import suppress
from types import ModuleType
from typing import Any, Protocol

from chatglm.generation.text import whole_characters
from chatglm.ui.terminal.keyboard import Keyboard
from chatglm.ui.terminal.screen import Screen, is_dumb

USER_LABEL = "用户："


class Reader(Protocol):
    """Source of questions and commands."""

    def read(self, label: str = USER_LABEL, typed: str = "") -> str:
        """The next line; `typed` stands in it already. Raises EOFError at the end and KeyboardInterrupt at Ctrl+C."""


class PipeReader:
    """One question per line, no prompt."""

    def read(self, label: str = USER_LABEL, typed: str = "") -> str:
        line = sys.stdin.readline() if sys.stdin is not None else ""
        if not line:
            raise EOFError
        return whole_characters(line).lstrip("\ufeff")  # byte order mark of Windows programs


class TypingReader:
    """A person without prompt_toolkit; uses readline if there is one. Prompts on stderr if stdout is no terminal."""

    def __init__(self, screen: Screen, keyboard: Keyboard) -> None:
        self._screen, self._keyboard = screen, keyboard
        self._readline: ModuleType | None = None
        with suppress(ImportError):
            import readline  # importing it gives `input` its line editing

            self._readline = readline

    def read(self, label: str = USER_LABEL, typed: str = "") -> str:
        if not self._screen.is_terminal:
            print(f"\n{label}", end="", file=sys.stderr, flush=True)
            return PipeReader().read()
        if self._readline is not None:
            self._readline.set_startup_hook(lambda: self._readline and self._readline.insert_text(typed))
        print()
        with self._keyboard.lent():
            return whole_characters(input(label))


class EditingReader:
    """A person on a terminal, with a prompt_toolkit PromptSession, which edits wide characters correctly."""

    def __init__(self, session: Any, keyboard: Keyboard) -> None:
        self._session, self._keyboard = session, keyboard
        keyboard.mark_pastes()

    def read(self, label: str = USER_LABEL, typed: str = "") -> str:
        print(flush=True)
        try:
            return whole_characters(self._session.prompt(label, default=typed))
        finally:
            self._keyboard.mark_pastes()


def make_reader(screen: Screen, keyboard: Keyboard, *, keeps_history: bool) -> Reader:
    """The best reader for these streams."""
    if not screen.has_person:
        return PipeReader()
    session = _editing_session(keeps_history) if screen.is_terminal and not is_dumb() else None
    return EditingReader(session, keyboard) if session is not None else TypingReader(screen, keyboard)


def _editing_session(keeps_history: bool) -> Any:
    """A PromptSession, or None where prompt_toolkit is missing or cannot drive this console."""
    try:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.key_binding import KeyBindings
        from prompt_toolkit.output import create_output
        from prompt_toolkit.shortcuts import CompleteStyle

        from chatglm.ui.terminal.completion import LineCompleter
        from chatglm.ui.terminal.history import PrivateHistory, history_path

        output = create_output()
        # The cursor position is needed for menus only, and terminals that do not report it cause a warning.
        output.enable_cpr = False  # type: ignore[attr-defined]
        keys = KeyBindings()
        keys.add("escape", "enter")(lambda event: event.current_buffer.insert_text("\n"))
        path = history_path() if keeps_history else None
        return PromptSession(
            output=output,
            key_bindings=keys,
            enable_suspend=True,
            history=PrivateHistory(path) if path is not None else None,
            completer=LineCompleter(),
            complete_while_typing=False,
            complete_style=CompleteStyle.READLINE_LIKE,
        )
    except Exception:  # ImportError; NoConsoleScreenBufferError exists on Windows only
        return None
