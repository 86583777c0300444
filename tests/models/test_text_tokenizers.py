"""Text tokenizers of ChatGLM2-6B and later: golden ids and texts, laws on small vocabularies, unusable files."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatglm.errors import CheckpointError, DamagedFileError, MismatchError, MissingFileError, PointerFileError
from chatglm.generation.detokenizer import IncrementalDetokenizer, join_surfaces
from chatglm.generation.text import whole_characters
from chatglm.models.vocabulary_file import MAX_FILE_BYTES
from tests.family_tokenizers import TEXT_TOKENIZERS, WRITERS, genuine_text_tokenizer, tiny_tokenizer
from tests.tokenizers import GOLDEN, golden_items, laws

FAMILIES = tuple(TEXT_TOKENIZERS)
SENTENCEPIECE = FAMILIES[:3]


def special_facts(name: str) -> dict[str, Any]:
    return json.loads((GOLDEN / f"tokenizer_{name}" / "special_ids.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", FAMILIES)
def test_golden_strings(name: str) -> None:
    tok = genuine_text_tokenizer(name)
    for item in golden_items(f"tokenizer_{name}", "strings"):
        ids = item.get("ids_names_as_text", item["ids"])
        assert tok.encode_plain(item["text"]) == ids, item["text"]
        if ids == item["ids"]:
            assert tok.decode(ids) == item["decode_ids"], item["text"]
            assert tok.build_inputs_with_special_tokens(ids) == item["ids_with_special"]


@pytest.mark.parametrize("name", SENTENCEPIECE)
def test_golden_pairs_and_special_names_in_decoded_text(name: str) -> None:
    tok = genuine_text_tokenizer(name)
    for item in golden_items(f"tokenizer_{name}", "pairs"):
        both = [tok.encode_plain(item[part]) for part in "ab"]
        assert tok.build_inputs_with_special_tokens(*both) == item["ids"]
    for item in golden_items(f"tokenizer_{name}", "strings"):
        assert tok.decode(item["ids_with_special"]) == item["decode_with_special"]


@pytest.mark.parametrize("name", ["chatglm3", "codegeex2", "glm4"])
def test_golden_special_ids(name: str) -> None:
    tok, facts = genuine_text_tokenizer(name), special_facts(name)
    named = {token: i for token, i in facts["ids"].items() if token not in ("<bos>", "<eos>", "<pad>")}
    assert tok.special_ids == named
    assert (tok.pad_token_id, tok.eos_token_id) == (facts["pad_token_id"], facts["eos_token_id"])
    assert tok.vocab_size == facts.get("len", facts["vocab_size"])
    for i, text in facts.get("decode_of_special_ids", {}).items():
        assert tok.decode([int(i)]) == text
    for i in [*facts.get("ids_beyond_the_vocabulary", {}), *facts.get("decode_beyond", {}), -1]:
        assert tok.surface(int(i)) is None
    if partial := facts.get("decode_partial_utf8"):
        assert tok.decode(partial["ids"]) == partial["text"]


@pytest.mark.parametrize("name", WRITERS)
@laws
@given(text=st.text(max_size=30) | st.text(alphabet=" \n\t'sa1，你👋\ud83d\udc4b", max_size=30))
def test_text_survives(name: str, text: str) -> None:
    tok = tiny_tokenizer(name)
    assert tok.decode(tok.encode_plain(text)) == whole_characters(text)


@pytest.mark.parametrize("name", WRITERS)
@laws
@given(data=st.data())
def test_typed_names_never_become_special_tokens(name: str, data: st.DataObject) -> None:
    tok = tiny_tokenizer(name)
    names = [*tok.special_ids, "<s>", "</s>", "<unk>", "<0x0A>", "<|", "|>", "[", "sop", "\n"]
    text = "".join(data.draw(st.lists(st.sampled_from(names) | st.text(max_size=3), max_size=8)))
    first_special = min(tok.special_ids.values())
    assert all(i < first_special for i in tok.encode_plain(text))
    if name in SENTENCEPIECE:
        assert not {1, 2} & set(tok.encode_plain(text))


@pytest.mark.parametrize("name", WRITERS)
@laws
@given(data=st.data())
def test_streamed_text_is_the_whole_one(name: str, data: st.DataObject) -> None:
    """Any ids, also broken UTF-8, special tokens, and ids beyond the vocabulary."""
    tok = tiny_tokenizer(name)
    ids = data.draw(st.lists(st.integers(0, tok.vocab_size + 2) | st.integers(3, 260), max_size=20))
    stream = IncrementalDetokenizer(tok)
    text = "".join([*map(stream.push, ids), stream.finish()])
    assert text == tok.decode(ids)


def test_broken_bytes_of_byte_pairs_decode_as_python_does() -> None:
    pieces = [b"a", b"\xf0", b"\x9f\x91", b"\xe4", b"\xbd", b"b", b"\xff"]
    expected = b"".join(pieces).decode(errors="replace")
    assert join_surfaces(pieces, "keep", "together") == expected != join_surfaces(pieces, "keep")


@pytest.mark.parametrize(("unit", "count"), [(" ", 1_000_000), ("\u3000", 50_000), ("ab", 50_000)])
def test_long_runs(unit: str, count: int) -> None:
    """A million blanks overflow the stack of tiktoken."""
    tok, text = tiny_tokenizer("glm4"), unit * count
    assert tok.decode(tok.encode_plain(text)) == text


def test_published_names_follow_the_pieces_where_none_are_listed(tmp_path: Path) -> None:
    WRITERS["glm4"](tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    assert TEXT_TOKENIZERS["glm4"].from_folder(tmp_path).special_ids == tiny_tokenizer("glm4").special_ids


UNUSABLE: list[tuple[bytes | None, type[Exception]]] = [
    (None, MissingFileError),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", PointerFileError),
    (b"", DamagedFileError),
    (b"<html>not found</html>", DamagedFileError),
    (b"\x00\x01\x02nonsense", DamagedFileError),
]


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize(("content", "error"), UNUSABLE, ids=["missing", "pointer", "empty", "web page", "nonsense"])
def test_unusable_files(name: str, content: bytes | None, error: type[Exception], tmp_path: Path) -> None:
    WRITERS[name](tmp_path)
    path = tmp_path / ("tokenizer.json" if name == "native" else "tokenizer.model")
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error, match=r"tokenizer\.model" if content is None else path.name.replace(".", r"\.")):
        TEXT_TOKENIZERS.get(name, TEXT_TOKENIZERS["glm4"]).from_folder(tmp_path)


@pytest.mark.parametrize("name", WRITERS)
def test_huge_files(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path)
    path = tmp_path / ("tokenizer.json" if name == "native" else "tokenizer.model")
    with path.open("r+b") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(DamagedFileError, match="too many"):
        TEXT_TOKENIZERS.get(name, TEXT_TOKENIZERS["glm4"]).from_folder(tmp_path)


def without_lines(path: Path, keep: Callable[[list[bytes]], list[bytes]]) -> None:
    path.write_bytes(b"\n".join(keep(path.read_bytes().splitlines())))


@pytest.mark.parametrize(
    "keep",
    [
        lambda lines: lines[:-7],
        lambda lines: lines[:100] + lines[101:],
        lambda lines: [*lines, lines[0]],
        lambda lines: [*lines[:-1], lines[-1][:3]],
        lambda lines: [*lines, base64.b64encode(b"x" * 9) + b" many"],
    ],
    ids=["cut between lines", "a line missing", "a line twice", "cut inside a line", "no number"],
)
def test_damaged_ranks(keep: Callable[[list[bytes]], list[bytes]], tmp_path: Path) -> None:
    """Ids of special tokens are those of tokenizer_config.json, so that a shorter list of pieces is noticed."""
    WRITERS["glm4"](tmp_path)
    without_lines(tmp_path / "tokenizer.model", keep)
    with pytest.raises(CheckpointError):
        TEXT_TOKENIZERS["glm4"].from_folder(tmp_path)


def test_ranks_without_all_bytes(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_text("YQ== 0\nYg== 1\n", encoding="ascii")
    with pytest.raises(MismatchError, match="256"):
        TEXT_TOKENIZERS["glm4"].from_folder(tmp_path)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"added_tokens": [{"id": 0}]}, DamagedFileError),
        ({"added_tokens": []}, MismatchError),
        ({"decoder": None}, CheckpointError),
        ({"model": {"type": "BPE", "vocab": {"\u4f60": 0}, "merges": []}}, DamagedFileError),
    ],
    ids=["no tokens", "no special tokens", "not of bytes", "no byte"],
)
def test_damaged_tokenizer_json(change: dict[str, Any], error: type[Exception], tmp_path: Path) -> None:
    WRITERS["native"](tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | change), encoding="utf-8")
    with pytest.raises(error, match="token"):
        TEXT_TOKENIZERS["glm4"].from_folder(tmp_path)
