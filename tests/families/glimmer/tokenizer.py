"""Byte-level pieces, longest match first, from a JSON file; special tokens have ids behind them and no spelling."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Self

from chatglm.checkpoints import check_usable

VOCABULARY_NAME = "pieces.json"
SPECIALS = ("[gMASK]", "sop", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>", "</s>", "<pad>")
STOPS = ("</s>", "<|user|>", "<|observation|>")


class GlimmerTextTokenizer:
    """Text to ids and back."""

    FILES = (VOCABULARY_NAME,)
    leading_spaces: Literal["keep"] = "keep"
    clean_up_tokenization_spaces = False

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self.pieces = list(pieces)
        self._ids = {piece: number for number, piece in enumerate(self.pieces)}
        self._longest = max(map(len, self.pieces))
        self._special_ids = {name: len(self.pieces) + number for number, name in enumerate(SPECIALS)}
        self.eos_ids = tuple(self._special_ids[name] for name in STOPS)
        self.pad_token_id = self._special_ids["<pad>"]

    @classmethod
    def from_folder(cls, folder: str | Path) -> Self:
        """The tokenizer of a model folder."""
        path = Path(folder) / VOCABULARY_NAME
        check_usable(path)
        return cls([piece.encode("latin-1") for piece in json.loads(path.read_text(encoding="utf-8"))])

    def save(self, folder: Path) -> None:
        """Write the vocabulary; bytes are stored as the characters U+0000 to U+00FF."""
        text = json.dumps([piece.decode("latin-1") for piece in self.pieces])
        (folder / VOCABULARY_NAME).write_text(text, encoding="utf-8")

    @property
    def vocab_size(self) -> int:
        """Pieces and special tokens; the model's embedding may have more rows."""
        return len(self.pieces) + len(SPECIALS)

    def special_id(self, name: str) -> int:
        """The id of a special token."""
        return self._special_ids[name]

    def encode_plain(self, text: str) -> list[int]:
        """Ids of text; nothing in it becomes a special token."""
        content, start, ids = text.encode(), 0, []
        while start < len(content):
            length = next(n for n in range(self._longest, 0, -1) if content[start : start + n] in self._ids)
            length = min(length, len(content) - start)
            ids.append(self._ids[content[start : start + length]])
            start += length
        return ids

    def build_inputs_with_special_tokens(self, ids: Sequence[int]) -> list[int]:
        """`[gMASK] sop text`: here the special tokens are in front."""
        return [self.special_id("[gMASK]"), self.special_id("sop"), *ids]

    def surface(self, token_id: int) -> str | bytes | None:
        """The bytes of a piece; None for what is not text."""
        return self.pieces[token_id] if 0 <= token_id < len(self.pieces) else None

    def decode(self, ids: Iterable[int], **_: Any) -> str:
        """The text of ids; special tokens are left out."""
        return b"".join(self.pieces[i] for i in ids if 0 <= i < len(self.pieces)).decode(errors="replace")


def learn_pieces(lines: Iterable[str], num_pieces: int) -> list[bytes]:
    """All single bytes and the most frequent pairs of neighbouring pieces, merged one after the other (BPE)."""
    words = [[bytes([byte]) for byte in line.encode()] for line in lines]
    pieces = [bytes([byte]) for byte in range(256)]
    while len(pieces) < num_pieces:
        counts: dict[tuple[bytes, bytes], int] = {}
        for word in words:
            for pair in pairwise(word):
                counts[pair] = counts.get(pair, 0) + 1
        best = max(counts, key=lambda pair: (counts[pair], pair))
        pieces.append(best[0] + best[1])
        words = [_merged(word, best) for word in words]
    return pieces


def _merged(word: list[bytes], pair: tuple[bytes, bytes]) -> list[bytes]:
    merged: list[bytes] = []
    for piece in word:
        if merged and (merged[-1], piece) == pair:
            merged[-1] += piece
        else:
            merged.append(piece)
    return merged
