"""The SentencePiece file of ChatGLM-6B: text to piece ids and back.

    "a\\n\\tb   c"  ->  "a<n><|tab|>b<|blank_3|>c"  ->  SentencePiece  ->  piece ids

First-release files lack control, white space and byte pieces; adding them gives exactly the v1.1.0 vocabulary.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path

import sentencepiece

from chatglm.errors import MismatchError
from chatglm.generation.detokenizer import LeadingSpaces
from chatglm.models.vocabulary_file import find_leading_spaces, piece_surface, read_sentencepiece

NEWLINE, TAB = "<n>", "<|tab|>"
SPECIAL_PIECES = ("[MASK]", "[gMASK]", "[sMASK]", "<unused_0>", "<sop>", "<eop>", "<ENC>", "<dBLOCK>")
LONGEST_BLANK = 80
_CONTROL, _USER_DEFINED, _BYTE = 3, 4, 6  # SentencePiece's own piece types
_WHITE_SPACE = re.compile(r"(\n|\t|  +)")


class PieceVocabulary:
    """Pieces of `ice_text.model`; raises CheckpointError if it is unusable, MismatchError if it is not ChatGLM-6B's."""

    def __init__(self, path: str | Path) -> None:
        self.processor = _load(Path(path))
        find = self.processor.piece_to_id
        self.unk_id: int = self.processor.unk_id()
        self.size: int = self.processor.get_piece_size()
        symbols = {"\n": NEWLINE, "\t": TAB, **{" " * k: blank(k) for k in range(LONGEST_BLANK, 1, -1)}}
        self._symbol_ids = {white: find(name) for white, name in symbols.items() if find(name) != self.unk_id}
        self._blank_sizes = [len(white) for white in self._symbol_ids if white.startswith(" ")]
        missing = [piece for piece in (NEWLINE, "[gMASK]", "<sop>", "<eop>") if find(piece) == self.unk_id]
        if missing:
            raise MismatchError(f"{path} has no piece {missing[0]}.", "It is not the vocabulary of a ChatGLM-6B model.")
        self._white_space = {symbol_id: white for white, symbol_id in self._symbol_ids.items()}
        # Ids that ordinary text must never turn into, however the vocabulary declares them.
        self._markup = self._white_space.keys() | {find(piece) for piece in SPECIAL_PIECES} - {self.unk_id}
        self._guard_length = len(self.processor.encode_as_ids(NEWLINE))
        self._unk_surface: str = self.processor.decode_ids([self.unk_id])
        self.leading_spaces: LeadingSpaces = find_leading_spaces(self.processor)

    def piece_to_id(self, piece: str) -> int:
        return int(self.processor.piece_to_id(piece))

    def id_to_piece(self, piece_id: int) -> str:
        return str(self.processor.id_to_piece(piece_id))

    def preprocess(self, text: str, *, linebreak: bool = True, whitespaces: bool = True) -> str:
        """Write newlines (`linebreak`), tabs and runs of blanks (`whitespaces`) as their symbols."""

        def write(match: re.Match[str]) -> str:
            found = match.group()
            if not (linebreak if found == "\n" else whitespaces):
                return found
            ids, rest = self._white_space_ids(found)
            return "".join(map(self.id_to_piece, ids)) + rest

        return _WHITE_SPACE.sub(write, text)

    def tokenize(self, text: str) -> list[str]:
        return list(self.processor.encode_as_pieces(self.preprocess(text)))

    def encode(
        self, text: str, *, linebreak: bool = True, whitespaces: bool = True, add_dummy_prefix: bool = True
    ) -> list[int]:
        """The piece ids of a text; literal `<n>`, `<|tab|>`, `<|blank_k|>` in it become those symbols, as upstream."""
        text = self.preprocess(text, linebreak=linebreak, whitespaces=whitespaces)
        return self._encode_between(text, is_first=add_dummy_prefix, is_last=True)

    def encode_plain(self, text: str) -> list[int]:
        """As `encode`, but only real white space becomes a symbol. Ids are checked: `＜n＞` normalises to `<n>`."""
        ids = self.encode(text)
        segments = _WHITE_SPACE.split(text)
        white_space = [self._white_space_ids(found) for found in segments[1::2]]
        if [i for i in ids if i in self._markup] == [i for ids_of_run, _ in white_space for i in ids_of_run]:
            return ids
        ids, rest = [], ""
        for number, segment in enumerate(segments[::2]):
            is_last = number == len(white_space)
            between = self._encode_between(rest + segment, is_first=number == 0, is_last=is_last)
            ids += [i for found in between for i in (self._spell(found) if found in self._markup else [found])]
            if not is_last:
                symbol_ids, rest = white_space[number]
                ids += symbol_ids
        return ids

    def surface(self, piece_id: int) -> str | bytes:
        if piece_id in self._white_space:
            return self._white_space[piece_id]
        return self._unk_surface if self.processor.is_unknown(piece_id) else piece_surface(self.processor, piece_id)

    def _white_space_ids(self, found: str) -> tuple[list[int], str]:
        """Symbols of one newline, one tab or a run of blanks (longest lengths first), and what has no symbol."""
        if not found.startswith(" "):
            symbol_id = self._symbol_ids.get(found)
            return ([], found) if symbol_id is None else ([symbol_id], "")
        ids, left = [], len(found)
        for size in self._blank_sizes:
            count, left = divmod(left, size)
            ids += [self._symbol_ids[" " * size]] * count
        return ids, " " * left

    def _encode_between(self, text: str, *, is_first: bool, is_last: bool) -> list[int]:
        """Ids of a stretch of a longer text; newline symbols where it goes on prevent dummy prefix and lost blanks."""
        ids = self.processor.encode_as_ids(("" if is_first else NEWLINE) + text + ("" if is_last else NEWLINE))
        return list(ids[0 if is_first else self._guard_length : None if is_last else -1])

    def _spell(self, piece_id: int) -> list[int]:
        """Ids that write a symbol's name as ordinary text: cut after the first character it is no symbol any more."""
        name = self.id_to_piece(piece_id)
        return [i for part in (name[0], name[1:]) for i in self._encode_between(part, is_first=False, is_last=False)]


def blank(length: int) -> str:
    """The symbol of a run of blanks."""
    return f"<|blank_{length}|>"


def _load(path: Path) -> sentencepiece.SentencePieceProcessor:
    processor = read_sentencepiece(path)
    if processor.piece_to_id("[gMASK]") != processor.unk_id():
        return processor
    return read_sentencepiece(path, path.read_bytes() + _first_release_additions(processor))


def _first_release_additions(processor: sentencepiece.SentencePieceProcessor) -> bytes:
    """The pieces that the first release's code added, as ModelProto bytes: protobuf merges by concatenation."""
    spaces = [TAB, *map(blank, range(2, LONGEST_BLANK + 1))]
    byte_pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    typed = [*((p, _CONTROL) for p in SPECIAL_PIECES), *((p, _USER_DEFINED) for p in spaces)]
    typed += [(piece, _BYTE) for piece in byte_pieces]
    unk_id = processor.unk_id()
    additions = b""
    for piece, piece_type in typed:
        if processor.piece_to_id(piece) == unk_id:
            name = piece.encode()
            # SentencePiece message: 1 = piece, 2 = score (float), 3 = type.
            body = (
                b"\x0a" + bytes([len(name)]) + name + b"\x15" + struct.pack("<f", 0.0) + b"\x18" + bytes([piece_type])
            )
            additions += b"\x0a" + bytes([len(body)]) + body
    # ModelProto field 2 = trainer_spec, whose field 35 = byte_fallback.
    return additions + b"\x12\x03\x98\x02\x01"
