"""Glimmer's tokenizer as `AutoTokenizer` returns it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizer

from tests.families.glimmer.tokenizer import SPECIALS, VOCABULARY_NAME, GlimmerTextTokenizer


class GlimmerTokenizer(PreTrainedTokenizer):
    """The same ids; pieces are named by their numbers."""

    vocab_files_names = {"vocab_file": VOCABULARY_NAME}

    def __init__(self, vocab_file: str, **kwargs: Any) -> None:
        self.text_tokenizer = GlimmerTextTokenizer.from_folder(Path(vocab_file).parent)
        super().__init__(**{"pad_token": "<pad>", "eos_token": "</s>", **kwargs})

    @property
    def vocab_size(self) -> int:
        """Pieces and special tokens."""
        return self.text_tokenizer.vocab_size

    def get_vocab(self) -> dict[str, int]:
        """Name -> id."""
        return {self._convert_id_to_token(i): i for i in range(self.vocab_size)}

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        return [str(i) for i in self.text_tokenizer.encode_plain(text)]

    def _convert_token_to_id(self, token: str) -> int:
        return self.text_tokenizer.special_id(token) if token in SPECIALS else int(token)

    def _convert_id_to_token(self, index: int) -> str:
        num_pieces = len(self.text_tokenizer.pieces)
        return str(index) if index < num_pieces else SPECIALS[index - num_pieces]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of tokens."""
        return self.text_tokenizer.decode(int(token) for token in tokens if token not in SPECIALS)

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """`[gMASK] sop text`."""
        return self.text_tokenizer.build_inputs_with_special_tokens([*token_ids_0, *(token_ids_1 or [])])
