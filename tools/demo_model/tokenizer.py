"""Trains the vocabulary of the demo model and writes the tokenizer files in the layout of ChatGLM-6B."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import sentencepiece

from tools.demo_model.encoding import LONGEST_BLANK_RUN, protect_blanks

VOCAB_SIZE = 6144
MODEL_FILE = "ice_text.model"
CONTROL = ["[MASK]", "[gMASK]", "[sMASK]", "<unused_0>", "<sop>", "<eop>"]
CHINESE_NUMERALS = list("零一二三四五六七八九十百")

TOKENIZER_CONFIG: dict[str, Any] = {
    "name_or_path": "glm-tiny-demo",
    "tokenizer_class": "ChatGLMTokenizer",
    "bos_token": "<sop>",
    "eos_token": "<eop>",
    "end_token": "</s>",
    "gmask_token": "[gMASK]",
    "mask_token": "[MASK]",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "padding_side": "left",
    "do_lower_case": False,
    "remove_space": False,
    "num_image_tokens": 0,
}


def train_tokenizer(texts: Iterable[str], folder: Path, vocab_size: int = VOCAB_SIZE) -> Path:
    """Train on the texts, write `ice_text.model` and `tokenizer_config.json` into the folder, return the former."""
    folder.mkdir(parents=True, exist_ok=True)
    blanks = [f"<|blank_{length}|>" for length in range(2, LONGEST_BLANK_RUN + 1)]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(protect_blanks(text) for text in texts),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        character_coverage=0.9995,
        byte_fallback=True,
        split_digits=True,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=3,
        unk_piece="<unk>",
        bos_piece="<s>",
        eos_piece="</s>",
        pad_piece="<pad>",
        user_defined_symbols=["<n>", "<|tab|>", *blanks, *CHINESE_NUMERALS],
        control_symbols=CONTROL,
        max_sentence_length=20000,
        num_threads=1,
        minloglevel=2,
    )
    path = folder / MODEL_FILE
    path.write_bytes(move_control_to_the_end(model.getvalue()))
    check_layout(path)
    config = json.dumps(TOKENIZER_CONFIG, indent=2, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(config + "\n", encoding="utf-8")
    return path


def move_control_to_the_end(model: bytes) -> bytes:
    """Move the control pieces behind all others, as in ChatGLM-6B, so that `<n>` is piece 4.

    The file is a protocol buffer whose field 1 is the list of pieces; the order of these entries is the order of the
    ids (a piece carries its score, so merges do not change). Only this outermost level is taken apart.
    """
    entries: list[tuple[int, bytes]] = []
    start = 0
    while start < len(model):
        tag, offset = _varint(model, start)
        size, offset = _varint(model, offset)
        if tag & 7 != 2:
            raise ValueError(f"unexpected wire type {tag & 7} in the SentencePiece file")
        entries.append((tag >> 3, model[start : offset + size]))
        start = offset + size
    names = [piece.encode() for piece in CONTROL]
    pieces = [entry for field, entry in entries if field == 1]
    control = [entry for entry in pieces if any(b"\n" + bytes([len(n)]) + n in entry for n in names)]
    others = [entry for entry in pieces if entry not in control]
    return b"".join([*others, *control, *(entry for field, entry in entries if field != 1)])


def _varint(data: bytes, offset: int) -> tuple[int, int]:
    """Read a protocol-buffer integer; return it and the offset behind it."""
    value = shift = 0
    while True:
        byte = data[offset]
        value |= (byte & 127) << shift
        offset, shift = offset + 1, shift + 7
        if byte < 128:
            return value, offset


def check_layout(path: Path) -> None:
    """Stop if the pieces that the package relies on are not where ChatGLM-6B has them."""
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(path))
    found = [pieces.id_to_piece(i) for i in range(5)]
    expected = ["<unk>", "<s>", "</s>", "<pad>", "<n>"]
    if found != expected:
        raise ValueError(f"the first pieces are {found}, not {expected}")
    missing = [piece for piece in CONTROL if not pieces.is_control(pieces.piece_to_id(piece))]
    if missing:
        raise ValueError(f"these control pieces are missing: {missing}")
