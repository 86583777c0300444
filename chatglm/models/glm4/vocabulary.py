"""Byte pair vocabularies of GLM-4: a file of ranks (`tokenizer.model`), or transformers' `tokenizer.json`.

Both give ids of text in which nothing is special, and the bytes of an id.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from chatglm.checkpoints import read_json
from chatglm.errors import DamagedFileError, MismatchError, UnsupportedModelError
from chatglm.models.vocabulary_file import MAX_FILE_BYTES, check_vocabulary_file
from chatglm.schema import Rule, list_of

RANKS_NAME, JSON_NAME = "tokenizer.model", "tokenizer.json"
# How GLM-4 cuts a text into words, before pairs are merged within each.
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# tiktoken ends in a stack overflow on some hundred thousand characters of white space in a row.
LONGEST_SPACE = 20_000
_LONG_SPACE = re.compile(rf"(\s{{{LONGEST_SPACE}}})")


class Vocabulary(Protocol):
    """Byte pairs, read from `path`: the first ids of the tokenizer."""

    path: Path

    @property
    def size(self) -> int: ...

    @property
    def special_ids(self) -> Mapping[str, int] | None:
        """Tokens that the file names beside the pairs; None if such a file names none."""
        ...

    def encode(self, text: str) -> list[int]: ...
    def token_bytes(self, token_id: int) -> bytes: ...
    def serialize(self) -> bytes:
        """The content of such a file."""
        ...


class RanksVocabulary:
    """A file of lines `base64 rank`; raises CheckpointError if it cannot be used."""

    special_ids = None

    def __init__(self, path: Path) -> None:
        import tiktoken

        self.path, ranks = path, _read_ranks(path)
        self._bytes = list(ranks)
        self._encoding = tiktoken.Encoding("glm4", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens={})

    @property
    def size(self) -> int:
        return len(self._bytes)

    def encode(self, text: str) -> list[int]:
        return [i for part in _LONG_SPACE.split(text) if part for i in self._encoding.encode_ordinary(part)]

    def token_bytes(self, token_id: int) -> bytes:
        return self._bytes[token_id]

    def serialize(self) -> bytes:
        return b"".join(b"%s %d\n" % (base64.b64encode(token), rank) for rank, token in enumerate(self._bytes))


class JsonVocabulary:
    """A byte-level `tokenizer.json`; raises CheckpointError if it cannot be used.

    Its added tokens are taken out before `tokenizers` sees them: otherwise it would find them inside text.
    """

    def __init__(self, path: Path) -> None:
        import tokenizers

        check_vocabulary_file(path)
        self.path, content = path, read_json(path, MAX_FILE_BYTES)
        self._added = added = content.get("added_tokens", [])
        if not ADDED_TOKENS.accepts(added):
            raise DamagedFileError(f"{path}: added_tokens is {ADDED_TOKENS.words}.", "Download it again.")
        self.special_ids: Mapping[str, int] = {token["content"]: token["id"] for token in added}
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(
                json.dumps(content | {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None})
            )
        except Exception as error:  # the library raises no class of its own
            raise DamagedFileError(f"{path} is not a tokenizer ({error}).", "Download it again.") from None
        if not isinstance(self._tokenizer.decoder, tokenizers.decoders.ByteLevel):
            raise UnsupportedModelError(f"{path} is not a byte-level tokenizer.", "Give the file of a GLM-4 model.")
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=False)
        try:
            self._bytes = token_bytes_of({name: i for name, i in vocabulary.items() if name not in self.special_ids})
        except KeyError as error:
            raise DamagedFileError(f"{path}: there is no id or character {error}.", "Download it again.") from None

    @property
    def size(self) -> int:
        return len(self._bytes)

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def token_bytes(self, token_id: int) -> bytes:
        return self._bytes[token_id]

    def serialize(self) -> bytes:
        return json.dumps(json.loads(self._tokenizer.to_str()) | {"added_tokens": self._added}).encode()


def _is_added_token(value: Any) -> bool:
    return isinstance(value, dict) and type(value.get("content")) is str and type(value.get("id")) is int


ADDED_TOKENS = list_of(Rule("objects with content and id", _is_added_token))


def _read_ranks(path: Path) -> dict[bytes, int]:
    check_vocabulary_file(path)
    ranks: dict[bytes, int] = {}
    try:
        for number, line in enumerate(path.read_bytes().splitlines()):
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
            if int(rank) != number or len(ranks) != number + 1:
                raise ValueError(f"line {number + 1} is out of order or there twice")
    except ValueError as error:
        raise DamagedFileError(f"{path} is no list of ranks ({error}).", "Download it again.") from None
    if any(bytes([byte]) not in ranks for byte in range(256)):
        raise MismatchError(f"{path} lacks some of the 256 bytes.", "It is not the vocabulary of a GLM-4 model.")
    return ranks


def token_bytes_of(vocabulary: Mapping[str, int]) -> list[bytes]:
    """The bytes of ids 0, 1, 2, ...; each byte is written as one printable character. KeyError for others."""
    names, byte_of = {i: name for name, i in vocabulary.items()}, _byte_of_character()
    return [bytes(byte_of[character] for character in names[i]) for i in range(len(vocabulary))]


def characters_of(token: bytes) -> str:
    """A token as such files, and transformers, write it: each byte as one printable character."""
    return "".join(_CHARACTERS[byte] for byte in token)


def _byte_of_character() -> dict[str, int]:
    """The byte-level alphabet: printable bytes of Latin-1 are themselves, the others U+0100 and following, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


_CHARACTERS = {byte: character for character, byte in _byte_of_character().items()}
