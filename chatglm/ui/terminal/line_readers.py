"""Reading lines: edited with prompt_toolkit on a terminal, plainly from anything else."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Any, Protocol

from chatglm.ui.terminal.screen import Screen, is_dumb

USER_LABEL = "用户："


class Reader(Protocol):
    """Source of questions and commands."""

    def read(self) -> str:
        """The next line. Raises EOFError at the end and KeyboardInterrupt at Ctrl+C."""


class PipeReader:
    """One question per line, no prompt."""

    def read(self) -> str:
        line = sys.stdin.readline() if sys.stdin is not None else ""
        if not line:
            raise EOFError
        return valid_text(line).lstrip("\ufeff")  # byte order mark of Windows programs


class TypingReader:
    """A person without prompt_toolkit; uses readline if there is one. Prompts on stderr if stdout is no terminal."""

    def __init__(self, screen: Screen) -> None:
        self._asks_on_stdout = screen.is_terminal
        with suppress(ImportError):
            import readline  # noqa: F401  (importing it gives `input` its line editing)

    def read(self) -> str:
        if self._asks_on_stdout:
            print()
            return valid_text(input(USER_LABEL))
        print(f"\n{USER_LABEL}", end="", file=sys.stderr, flush=True)
        return PipeReader().read()


class EditingReader:
    """A person on a terminal, with a prompt_toolkit PromptSession, which edits wide characters correctly."""

    def __init__(self, session: Any) -> None:
        self._session = session

    def read(self) -> str:
        print(flush=True)
        return valid_text(self._session.prompt(USER_LABEL))


def make_reader(screen: Screen) -> Reader:
    """The best reader for these streams."""
    if not screen.has_person:
        return PipeReader()
    session = _editing_session() if screen.is_terminal and not is_dumb() else None
    return EditingReader(session) if session is not None else TypingReader(screen)


def valid_text(text: str) -> str:
    """`text` with UTF-16 surrogate pairs joined (Windows consoles) and undecodable bytes replaced (elsewhere)."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _editing_session() -> Any:
    """A PromptSession, or None where prompt_toolkit is missing or cannot drive this console."""
    try:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.key_binding import KeyBindings
        from prompt_toolkit.output import create_output

        output = create_output()
        # The cursor position is needed for menus only, and terminals that do not report it cause a warning.
        output.enable_cpr = False  # type: ignore[attr-defined]
        keys = KeyBindings()
        keys.add("escape", "enter")(lambda event: event.current_buffer.insert_text("\n"))
        return PromptSession(output=output, key_bindings=keys, enable_suspend=True)
    except Exception:  # ImportError; NoConsoleScreenBufferError exists on Windows only
        return None
