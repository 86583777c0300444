"""Tab: the names of commands and settings, and the files of `/save` and `/load`."""

from __future__ import annotations

from collections.abc import Iterable

from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document

from chatglm.ui.terminal.commands import BY_SLASH, COMMANDS, SAVE
from chatglm.ui.terminal.parameters import SAMPLING, SWITCHES


class LineCompleter(Completer):
    """Completes a line that begins with a slash, or with the plain word `save`."""

    def __init__(self) -> None:
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        word, blank, argument = document.text_before_cursor.partition(" ")
        if not blank:
            names = [f"/{command.name}" for command in COMMANDS] if word.startswith("/") else []
            return _starting_with(word, [f"{name} " for name in names])
        command = SAVE if word == SAVE.name else BY_SLASH.get(word[1:]) if word.startswith("/") else None
        if command is None:
            return []
        if command.argument == "FILE":
            return self._paths.get_completions(Document(argument), complete_event)
        return (
            _starting_with(argument, [f"{name} " for name in (*SAMPLING, *SWITCHES)]) if command.name == "set" else []
        )


def _starting_with(start: str, words: Iterable[str]) -> list[Completion]:
    return [Completion(word, -len(start)) for word in words if word.startswith(start)]
