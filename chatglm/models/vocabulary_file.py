"""Reading vocabulary files safely, and decoding the pieces of SentencePiece models."""

from __future__ import annotations

from pathlib import Path

import sentencepiece

from chatglm.checkpoints import check_usable
from chatglm.errors import DamagedFileError
from chatglm.generation.detokenizer import SPACE_MARK, LeadingSpaces

MAX_FILE_BYTES = 64 * 2**20  # published files have 1 to 20 MB


def check_vocabulary_file(path: Path) -> None:
    """Raise CheckpointError unless `path` may be a vocabulary."""
    check_usable(path)
    if (size := path.stat().st_size) > MAX_FILE_BYTES:  # SentencePiece ends the process at two gigabytes
        raise DamagedFileError(f"{path} has {size:,} bytes, too many for a vocabulary.", "Download it again.")


def read_sentencepiece(path: Path, content: bytes | None = None) -> sentencepiece.SentencePieceProcessor:
    """The SentencePiece model in the file, or in `content` of it; raises CheckpointError if it cannot be used."""
    if content is None:
        check_vocabulary_file(path)
        content = path.read_bytes()
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=content)
    except (RuntimeError, ValueError) as error:
        raise DamagedFileError(f"{path} is not a SentencePiece model ({error}).", "Download it again.") from error


def find_leading_spaces(processor: sentencepiece.SentencePieceProcessor) -> LeadingSpaces:
    """How decoding treats spaces at the start of a text: asked of SentencePiece, whose options are not exposed."""
    space = processor.piece_to_id(SPACE_MARK)
    if space == processor.unk_id() or processor.decode_ids([space]) != "":
        return "keep"
    return "drop all" if processor.decode_ids([space, space]) == "" else "drop one"


def piece_surface(processor: sentencepiece.SentencePieceProcessor, piece_id: int) -> str | bytes:
    """What a normal, byte or control piece adds to a text."""
    if processor.is_control(piece_id):
        return ""
    piece = str(processor.id_to_piece(piece_id))
    return bytes([int(piece[3:5], 16)]) if processor.is_byte(piece_id) else piece
