"""Texts as token ids: both forms, what is chosen of them, and what is said of a file that is of no use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from chatglm.checkpoints.validate import ValidationReport
from chatglm.conversion import samples
from chatglm.conversion.samples import BUNDLED, Sample, read_samples
from chatglm.demo import CHECKPOINT
from chatglm.errors import ChatGLMError
from chatglm.loading import examine
from chatglm.messages import check_history, to_messages
from chatglm.models.chatglm.template import encode_chat
from tests.conversion.text import write_text
from tests.folders import make_folder


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> ValidationReport:
    folder = tmp_path_factory.mktemp("model")
    make_folder(folder, "safetensors", max_sequence_length=128)
    return examine(folder)


def read(
    path: Path, report: ValidationReport, num_tokens: int = 10**9, min_tokens: int = 1, seed: int = 0
) -> list[Sample]:
    return read_samples(path, report, num_tokens, min_tokens, seed)


def test_plain_text_is_cut_into_prompts_and_what_follows(report: ValidationReport, tmp_path: Path) -> None:
    """Every token of the text is in exactly one sample, half of them as prompt."""
    path = write_text(tmp_path / "text.txt")
    special = {report.config.gmask_token_id, report.config.bos_token_id}
    found = read(path, report)
    assert sum(len(sample.input_ids) - 2 for sample in found) == len(report.tokenizer.encode_plain(path.read_text()))
    for sample in found:
        assert len(sample.input_ids) <= report.config.max_sequence_length
        assert sample.input_ids[sample.first] == report.config.bos_token_id
        assert set(sample.input_ids[sample.first - 1 : sample.first + 1]) == special
        assert 0 <= len(sample.input_ids) - 1 - sample.first - (sample.first - 1) <= 1
    longest = max(found, key=lambda sample: len(sample.input_ids))
    assert len(longest.input_ids) == report.config.max_sequence_length


def test_conversations_are_the_prompts_of_a_chat(report: ValidationReport, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "hello", "response": "world", "history": [["how", "are you"]]},
        {"content": "天\u2028气\x85", "summary": "很\u2029好"},
        {"prompt": "fox " * 100, "response": "brown " * 100},
    ]
    path = tmp_path / "chats.jsonl"
    path.write_text("\r\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    found = {sample.input_ids[-2]: sample for sample in read(path, report)}
    assert len(found) == 3
    for row in rows[:2]:
        query, answer, history = [*row.values(), None][:3]
        asked = encode_chat(report.tokenizer, to_messages(query, check_history(history)), 10**9).input_ids
        answered = report.tokenizer.encode_plain(answer)
        sample = found[answered[-1]]
        assert sample.input_ids == [*asked, *answered, report.config.eos_token_id]
        assert sample.first == len(asked) - 1
    longest = max(found.values(), key=lambda sample: len(sample.input_ids))
    assert len(longest.input_ids) == report.config.max_sequence_length
    assert longest.input_ids[longest.first] == report.config.bos_token_id


def test_special_tokens_in_a_text_are_text(report: ValidationReport, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("hello [gMASK]<sop> world " * 20)
    for sample in read(path, report):
        assert sample.input_ids.count(report.config.bos_token_id) == 1


def test_a_seed_chooses_of_a_long_text(report: ValidationReport, tmp_path: Path) -> None:
    path = write_text(tmp_path / "text.txt", 4000)
    some = read(path, report, num_tokens=300)
    assert 300 <= sum(len(sample.input_ids) for sample in some) < 300 + report.config.max_sequence_length
    assert some == read(path, report, num_tokens=300)
    assert some != read(path, report, num_tokens=300, seed=1)
    everything = read(path, report)
    assert sorted(s.input_ids for s in everything) == sorted(s.input_ids for s in read(path, report, seed=1))


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("empty.txt", b"", "0 tokens of text; at least 32"),
        ("blank.jsonl", b"\n\n", "0 tokens of text"),
        ("short.txt", b"hello", "at least 32 are needed"),
        ("latin.txt", "süß".encode("latin-1"), "not UTF-8"),
        ("text.jsonl", b"hello world", r"Line 1 of .*text\.jsonl is no conversation"),
        ("list.jsonl", b'\n["a"]', "Line 2 .*no object"),
        ("keys.jsonl", b'{"prompt": "a"}', "no prompt and response"),
        ("number.jsonl", b'{"prompt": "a", "response": 3}', "no prompt and response"),
        ("history.jsonl", b'{"prompt": "a", "response": "b", "history": ["c"]}', "history.*not a pair"),
    ],
)
def test_files_of_no_use_are_named(
    name: str, content: bytes, sentence: str, report: ValidationReport, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ChatGLMError, match=sentence) as caught:
        read(path, report, min_tokens=32)
    assert str(path) in caught.value.problem


def test_files_that_cannot_be_read_are_named(
    report: ValidationReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ChatGLMError, match=r"nowhere\.txt cannot be read: No such file"):
        read(tmp_path / "nowhere.txt", report)
    with pytest.raises(ChatGLMError, match="cannot be read: Is a directory"):
        read(tmp_path, report)
    path = write_text(tmp_path / "text.txt")
    monkeypatch.setattr(samples, "MAX_FILE_BYTES", 100)
    with pytest.raises(ChatGLMError, match="100 bytes are read at most"):
        read(path, report)


def test_the_bundled_conversations() -> None:
    """They are enough for the demo model, and each is one that it can read whole."""
    demo = examine(CHECKPOINT)
    found = read(BUNDLED, demo)
    assert sum(len(sample.input_ids) for sample in found) > 4 * demo.config.hidden_size
    assert max(len(sample.input_ids) for sample in found) < samples.LONGEST
    some_have_rounds = [s for s in found if "[Round 1]" in demo.tokenizer.decode(s.input_ids)]
    assert len(some_have_rounds) > 10
