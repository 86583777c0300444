"""Reading what the user says: edited on a terminal, plainly from anything else.

Knows: prompt_toolkit, which edits wide characters properly and works on Windows, and what to do without it.
Does not know commands or answers. A reader's `read` raises EOFError at the end and KeyboardInterrupt at Ctrl+C.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Any, Protocol

from chatglm.ui.terminal.screen import Screen, is_dumb

USER_LABEL = "用户："


class Reader(Protocol):
    """Gives one question or command after the other."""

    def read(self) -> str: ...


class PipeReader:
    """One question per line, without a word."""

    def read(self) -> str:
        line = sys.stdin.readline() if sys.stdin is not None else ""
        if not line:
            raise EOFError
        return sound_text(line).lstrip("\ufeff")  # files written by Windows programs begin with this mark


class TypingReader:
    """A person without prompt_toolkit: what the terminal, and readline where there is one, can do.

    Args:
        screen: tells whether the person sees stdout; if not, they are asked on stderr.
    """

    def __init__(self, screen: Screen) -> None:
        self._asks_on_stdout = screen.is_terminal
        with suppress(ImportError):
            import readline  # noqa: F401  (importing it gives `input` its line editing)

    def read(self) -> str:
        if self._asks_on_stdout:
            print()
            return sound_text(input(USER_LABEL))
        print(f"\n{USER_LABEL}", end="", file=sys.stderr, flush=True)
        return PipeReader().read()


class EditingReader:
    """A person on a terminal, with prompt_toolkit: line editing, history of the session, pasting of several lines.

    Args:
        session: a prompt_toolkit PromptSession.
    """

    def __init__(self, session: Any) -> None:
        self._session = session

    def read(self) -> str:
        print(flush=True)
        return sound_text(self._session.prompt(USER_LABEL))


def choose_reader(screen: Screen) -> Reader:
    """The best reader for these streams."""
    if not screen.has_person:
        return PipeReader()
    session = _editing_session() if screen.is_terminal and not is_dumb() else None
    return EditingReader(session) if session is not None else TypingReader(screen)


def sound_text(text: str) -> str:
    """`text` with halves of UTF-16 pairs joined (Windows consoles) and bytes that were no text replaced (elsewhere)."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _editing_session() -> Any:
    """A PromptSession, or None where prompt_toolkit is missing or cannot drive this console."""
    try:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.key_binding import KeyBindings
        from prompt_toolkit.output import create_output

        output = create_output()
        # Asking for the cursor's position is of use for menus only, and makes a fuss on terminals that do not answer.
        output.enable_cpr = False  # type: ignore[attr-defined]
        keys = KeyBindings()
        keys.add("escape", "enter")(lambda event: event.current_buffer.insert_text("\n"))
        return PromptSession(output=output, key_bindings=keys, enable_suspend=True)
    except Exception:  # ImportError; NoConsoleScreenBufferError on Windows, which can only be named there
        return None
