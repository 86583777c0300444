"""Rows of training data: JSON (an array), JSON lines or CSV, with columns of the user's naming."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chatglm.checkpoints import check_usable
from chatglm.errors import InvalidRequestError, MissingFileError
from chatglm.generation.text import whole_characters
from chatglm.messages import History

LONGEST_CELL = 2**31 - 1  # the standard library's limit, 131,072 characters, is of the whole process
SUFFIXES = (".json", ".jsonl", ".csv")


@dataclass(frozen=True)
class Columns:
    """Names of the columns; `history` holds `[[question, answer], ...]`, in CSV as JSON text."""

    prompt: str
    response: str
    history: str | None = None


@dataclass(frozen=True)
class Record:
    """One question with the answer to learn, and the rounds before it."""

    prompt: str
    response: str
    history: History = field(default_factory=list)


@dataclass(frozen=True)
class Records:
    """The rows with a prompt and a response, how many were left out because one of the two is empty, and the lines of
    rows that hold half of a surrogate pair, which is U+FFFD in them now.
    """

    rows: list[Record]
    num_empty: int
    broken_lines: list[int] = field(default_factory=list)


def read_records(path: str | Path, columns: Columns, limit: int | None = None) -> Records:
    """The rows of `path`, in its order.

    Args:
        path: ends in .json (an array, or one object per line), .jsonl or .csv.
        columns: names of the columns.
        limit: stop after so many rows that are not empty.

    Raises:
        CheckpointError: there is no such file, it is empty or a Git-LFS pointer.
        InvalidRequestError: names file, line and column of what cannot be used; or the file has no rows at all.
    """
    path = Path(path).expanduser()
    rows: list[Record] = []
    num_empty, broken_lines = 0, []
    for line, row in _numbered_rows(path):
        record = _record(path, line, row, columns)
        whole = _whole(record)
        if whole != record:
            record = whole
            broken_lines.append(line)
        if record.prompt and record.response:
            rows.append(record)
        else:
            num_empty += 1
        if limit is not None and len(rows) >= limit:
            break
    if not rows:
        empty = f"{num_empty} rows, all without prompt or response" if num_empty else "no rows"
        raise InvalidRequestError(f"{path} has {empty}.", "Give a file with at least one whole row.")
    return Records(rows, num_empty, broken_lines)


def _numbered_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line that a row begins in, counted from 1; its values by column)."""
    if path.suffix.lower() not in SUFFIXES:
        raise InvalidRequestError(f"{path} is neither .json, .jsonl nor .csv.", "Rename it after what it holds.")
    text = _text(path)
    if path.suffix.lower() == ".csv":
        return _csv_rows(path, text)
    if text.lstrip().startswith("["):
        return _array_rows(path, text)
    return _line_rows(path, text)


def _text(path: Path) -> str:
    if not path.is_file():
        raise MissingFileError(f"There is no file {path}.", "Check the name; paths are relative to where you are now.")
    check_usable(path)
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InvalidRequestError(f"{path}, line {line}: this is not UTF-8 text.", "Save the file as UTF-8.") from None


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    names: list[str] | None = None
    while True:
        first_line = reader.line_num + 1
        try:
            with _long_cells():
                values = next(reader, None)
        except csv.Error as error:
            raise InvalidRequestError(
                f"{path}, line {first_line}: {error}.", "Quote values that hold commas or quotes."
            ) from None
        if values is None:
            return
        if names is None:
            names = [name.strip() for name in values]
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                raise InvalidRequestError(
                    f'{path}, line {first_line} names the column "{twice}" twice.', "Rename or remove one of them."
                )
        elif values:
            if len(values) != len(names):
                raise InvalidRequestError(
                    f"{path}, line {first_line} has {len(values)} values; the first line names {len(names)} columns.",
                    "Quote values that hold commas.",
                )
            yield first_line, dict(zip(names, values, strict=True))


@contextmanager
def _long_cells() -> Iterator[None]:
    limit = csv.field_size_limit(LONGEST_CELL)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _line_rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    # Not splitlines(): U+2028 and the like may stand inside a JSON string.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise _no_json(path, number, error) from None
            yield number, _checked_row(path, number, row)


def _array_rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSON array one by one, so that each has a line number."""
    decoder = json.JSONDecoder()
    place, line, counted = text.index("[") + 1, 1, 0
    while True:
        place = _after_space(text, place)
        line, counted = line + text.count("\n", counted, place), place
        if text[place : place + 1] == "]":
            if text[place + 1 :].strip():
                raise _no_json(path, line, ValueError("something follows the end of the array"))
            return
        try:
            row, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            raise _no_json(path, getattr(error, "lineno", line), error) from None
        yield line, _checked_row(path, line, row)
        place = _after_space(text, place)
        if text[place : place + 1] == ",":
            place += 1
        elif text[place : place + 1] != "]":
            end = text.count("\n", 0, place) + 1
            raise _no_json(path, end, ValueError("a comma or the end of the array is missing"))


def _after_space(text: str, place: int) -> int:
    while place < len(text) and text[place] in " \t\r\n":
        place += 1
    return place


def _no_json(path: Path, line: int, error: Exception) -> InvalidRequestError:
    column = f", character {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
    reason = error.msg if isinstance(error, json.JSONDecodeError) else error
    return InvalidRequestError(
        f"{path}, line {line}{column}: no JSON can be read ({reason}).",
        "Give an array of objects, or one object per line.",
    )


def _checked_row(path: Path, line: int, row: Any) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise InvalidRequestError(
            f"{path}, line {line}: the row is {_kind(row)}, not an object.",
            'Give rows like {"content": "...", "summary": "..."}.',
        )
    return row


def _record(path: Path, line: int, row: dict[str, Any], columns: Columns) -> Record:
    prompt = _text_value(path, line, row, columns.prompt)
    response = _text_value(path, line, row, columns.response)
    history = _history(path, line, row, columns.history) if columns.history is not None else []
    return Record(prompt, response, history)


def _whole(record: Record) -> Record:
    history = [(whole_characters(asked), whole_characters(answered)) for asked, answered in record.history]
    return Record(whole_characters(record.prompt), whole_characters(record.response), history)


def _value(path: Path, line: int, row: dict[str, Any], column: str) -> Any:
    if column not in row:
        names = ", ".join(str(name) for name in row) or "none"
        raise InvalidRequestError(
            f'{path}, line {line}: there is no column "{column}"; there are: {names}.',
            "Name the columns with --prompt_column, --response_column and --history_column.",
        )
    return row[column]


def _text_value(path: Path, line: int, row: dict[str, Any], column: str) -> str:
    value = _value(path, line, row, column)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InvalidRequestError(f'{path}, line {line}, column "{column}": {_kind(value)} stands where text belongs.')
    return value


def _history(path: Path, line: int, row: dict[str, Any], column: str) -> History:
    value = _value(path, line, row, column)
    if isinstance(value, str) and value.strip():  # a CSV cell
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise _no_history(path, line, column) from None
    if value in (None, "", []):
        return []
    is_list = isinstance(value, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in value)
    if not is_list or not all(isinstance(part, str) for pair in value for part in pair):
        raise _no_history(path, line, column)
    return [(asked, answered) for asked, answered in value]


def _no_history(path: Path, line: int, column: str) -> InvalidRequestError:
    return InvalidRequestError(
        f'{path}, line {line}, column "{column}" holds no history.', 'Give [["question", "answer"], ...], or [].'
    )


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), f"the number {value}")
