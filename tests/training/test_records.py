"""Rows of data files: every form is read alike, every mistake names file, line and column."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatglm.errors import DamagedFileError, InvalidRequestError, MissingFileError, PointerFileError
from chatglm.training.records import Columns, Record, read_records

COLUMNS = Columns("content", "summary")
DIALOGUE = Columns("prompt", "response", "history")
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12)
ROWS = st.lists(st.fixed_dictionaries({"content": TEXTS, "summary": TEXTS}), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(rows=ROWS)
def test_every_form_holds_the_same_rows(rows: list[dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("forms")
    table = io.StringIO()
    writer = csv.DictWriter(table, ["content", "summary"])
    writer.writeheader()
    writer.writerows(rows)
    forms = {
        "array.json": json.dumps(rows),
        "pretty.json": json.dumps(rows, indent=2, ensure_ascii=False),
        "lines.json": "\n".join(json.dumps(row, ensure_ascii=False) for row in rows),
        "lines.jsonl": "".join(json.dumps(row) + "\n\n" for row in rows),
        "table.csv": table.getvalue(),
    }
    expected = [Record(row["content"], row["summary"]) for row in rows]
    for name, text in forms.items():
        (folder / name).write_bytes(text.encode())
        assert read_records(folder / name, COLUMNS).rows == expected, name


def test_a_byte_order_mark_is_no_part_of_the_data(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("\ufeffcontent,summary\nhello,fox\n".encode())
    assert read_records(tmp_path / "a.csv", COLUMNS).rows == [Record("hello", "fox")]


def test_empty_rows_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [{"content": "a", "summary": ""}, {"content": None, "summary": "b"}, {"content": "c", "summary": "d"}]
    path = _write(tmp_path, rows)
    read = read_records(path, COLUMNS)
    assert (read.rows, read.num_empty) == ([Record("c", "d")], 2)
    with pytest.raises(InvalidRequestError, match="2 rows, all without"):
        read_records(_write(tmp_path, rows[:2]), COLUMNS)


def test_the_limit_counts_whole_rows_and_reads_no_further(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"content": "", "summary": "x"}\n{"content": "a", "summary": "b"}\nnot read\n', encoding="utf-8")
    assert read_records(path, COLUMNS, limit=1).rows == [Record("a", "b")]


def test_dialogues_have_their_history(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "c", "response": "d", "history": [["a", "b"]]},
        {"prompt": "e", "response": "f", "history": []},
        {"prompt": "g", "response": "h", "history": None},
    ]
    expected = [Record("c", "d", [("a", "b")]), Record("e", "f"), Record("g", "h")]
    assert read_records(_write(tmp_path, rows), DIALOGUE).rows == expected
    table = 'prompt,response,history\nc,d,"[[""a"", ""b""]]"\ne,f,\n'
    (tmp_path / "a.csv").write_text(table, encoding="utf-8")
    assert read_records(tmp_path / "a.csv", DIALOGUE).rows == expected[:2]


def test_long_cells_are_read_and_the_limit_of_others_stays(tmp_path: Path) -> None:
    limit = csv.field_size_limit()
    (tmp_path / "a.csv").write_text(f'content,summary\n"{"长" * 140_000}",摘要\n', encoding="utf-8")
    assert read_records(tmp_path / "a.csv", COLUMNS).rows == [Record("长" * 140_000, "摘要")]
    assert csv.field_size_limit() == limit


def test_half_characters_are_replaced_and_their_lines_known(tmp_path: Path) -> None:
    pair = "\ud83d\ude00"
    rows = [
        {"prompt": "a", "response": "b", "history": []},
        {"prompt": f"a{pair}", "response": "b\ud83d", "history": [["\ude00", pair]]},
    ]
    read = read_records(_write(tmp_path, rows), DIALOGUE)
    assert read.rows == [Record("a", "b"), Record("a😀", "b\ufffd", [("\ufffd", "😀")])]
    assert read.broken_lines == [2]


GOOD = '{"content": "a", "summary": "b"}\n'
MISTAKES = {
    "wrong column": ("a.json", GOOD + '{"text": "a", "summary": "b"}', 'line 2: there is no column "content".*text'),
    "number": ("a.json", GOOD + '{"content": 3, "summary": "b"}', 'line 2, column "content": the number 3'),
    "object": ("a.json", '{"content": "a", "summary": {}}', 'line 1, column "summary": an object'),
    "row is a list": ("a.jsonl", GOOD + "[1, 2]", "line 2: the row is a list"),
    "no JSON": ("a.jsonl", GOOD + '{"content": "a" "b"}', "line 2, character 17: no JSON"),
    "cut array": ("a.json", '[{"content": "a", "summary": "b"},\n {"content":', "line 2.*no JSON"),
    "array without comma": ("a.json", '[{"content": "a", "summary": "b"}\n\n{}]', "line 3: .*comma"),
    "row of an array": ("a.json", '[{"content": "a", "summary": "b"},\n\n  7]', "line 3: the row is the number 7"),
    "after an array": ("a.json", '[{"content": "a", "summary": "b"}] x', "line 1: .*follows the end"),
    "deep": ("a.jsonl", GOOD + "[" * 200_000, "line 2: no JSON"),
    "no rows": ("a.json", "[]", "no rows"),
    "column twice": ("a.csv", "content,summary,content\na,b,c\n", 'line 1 names the column "content" twice'),
    "short row": ("a.csv", "content,summary\na,b\nc\n", "line 3 has 1 values"),
    "quote": ("a.csv", 'content,summary\na,"b\n', "line 2: "),
    "table column": ("a.csv", "content,text\na,b\n", 'line 2: there is no column "summary"'),
    "suffix": ("a.txt", GOOD, "neither .json, .jsonl nor .csv"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_name_file_line_and_column(name: str, tmp_path: Path) -> None:
    file, text, words = MISTAKES[name]
    (tmp_path / file).write_text(text, encoding="utf-8")
    with pytest.raises(InvalidRequestError, match=words) as caught:
        read_records(tmp_path / file, COLUMNS)
    assert file in str(caught.value)


@pytest.mark.parametrize("history", ["a", [["a"]], [["a", 1]], {"a": "b"}, 5])
def test_histories_of_another_form(history: Any, tmp_path: Path) -> None:
    path = _write(tmp_path, [{"prompt": "a", "response": "b", "history": history}])
    with pytest.raises(InvalidRequestError, match='line 1, column "history" holds no history'):
        read_records(path, DIALOGUE)


def test_files_without_data(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="There is no file"):
        read_records(tmp_path / "absent.json", COLUMNS)
    (tmp_path / "a.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n", encoding="utf-8")
    (tmp_path / "empty.csv").touch()
    with pytest.raises(DamagedFileError, match="is empty"):
        read_records(tmp_path / "empty.csv", COLUMNS)
    with pytest.raises(PointerFileError, match="git lfs pull"):
        read_records(tmp_path / "a.json", COLUMNS)
    (tmp_path / "b.json").write_bytes(GOOD.encode() + '{"content": "中"}'.encode("gbk"))
    with pytest.raises(InvalidRequestError, match=r"b\.json, line 2: this is not UTF-8"):
        read_records(tmp_path / "b.json", COLUMNS)


def _write(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "rows.json"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path
