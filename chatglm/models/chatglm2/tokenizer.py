"""The tokenizer of ChatGLM2-6B: SentencePiece pieces, then special tokens that no text spells.

[gMASK] sop text            ids 0 ... 64788 pieces, 64789 [MASK], [gMASK], [sMASK], sop, eop
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

from chatglm.generation.detokenizer import LeadingSpaces, join_surfaces
from chatglm.generation.text import whole_characters
from chatglm.models.vocabulary_file import find_leading_spaces, piece_surface, read_sentencepiece

VOCABULARY_NAME = "tokenizer.model"


class ChatGLM2TextTokenizer:
    """Text to token ids and back; raises CheckpointError if `vocab_file` is missing or damaged.

    `special_names` have the ids behind the pieces. `shows_special`: whether decoding writes them.
    """

    special_names: tuple[str, ...] = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop")
    shows_special = False
    clean_up_tokenization_spaces = False

    def __init__(self, vocab_file: str | Path) -> None:
        self.vocab_file = Path(vocab_file)
        self.processor = read_sentencepiece(self.vocab_file)
        self.num_pieces: int = self.processor.get_piece_size()
        self.special_ids = {name: self.num_pieces + number for number, name in enumerate(self.special_names)}
        self.leading_spaces: LeadingSpaces = find_leading_spaces(self.processor)
        self.pad_token_id: int = self.processor.unk_id()
        self.bos_token_id: int = self.processor.bos_id()
        self.eos_token_id: int = self.processor.eos_id()
        self._silent = {self.pad_token_id, self.bos_token_id, self.eos_token_id}
        self._surfaces: dict[int, str | bytes | None] = {}

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """The tokenizer of a model folder; raises CheckpointError for an unusable file."""
        return cls(folder / VOCABULARY_NAME)

    @property
    def vocab_size(self) -> int:
        """Pieces and special tokens; the model's embedding has more rows."""
        return self.num_pieces + len(self.special_names)

    def special_id(self, name: str) -> int:
        """The id of a special token; KeyError if there is none of that name."""
        return self.special_ids[name]

    def encode_plain(self, text: str) -> list[int]:
        """Ids of text from outside: names of special tokens in it stay characters."""
        return list(self.processor.encode_as_ids(whole_characters(text)))  # it cannot take half a surrogate pair

    def build_inputs_with_special_tokens(self, prompt: Sequence[int], answer: Sequence[int] | None = None) -> list[int]:
        """`[gMASK] sop prompt`, or with an answer `[gMASK] sop prompt answer </s>`."""
        ids = [self.special_id("[gMASK]"), self.special_id("sop"), *prompt]
        return ids if answer is None else [*ids, *answer, self.eos_token_id]

    def surface(self, token_id: int) -> str | bytes | None:
        """What a token adds to a text: see `SurfaceTokenizer.surface`. None for an id that is no token."""
        if token_id not in self._surfaces:
            self._surfaces[token_id] = self._find_surface(token_id)
        return self._surfaces[token_id]

    def vocabulary_bytes(self) -> bytes:
        """The content of a vocabulary file that is gone."""
        return self.processor.serialized_model_proto()

    def decode(self, token_ids: Iterable[int]) -> str:
        """The text of token ids; ids that are no token are passed over."""
        return join_surfaces(map(self.surface, token_ids), self.leading_spaces)

    def _find_surface(self, token_id: int) -> str | bytes | None:
        if not 0 <= token_id < self.vocab_size:
            return None
        if token_id >= self.num_pieces:
            return self.special_names[token_id - self.num_pieces] if self.shows_special else ""
        return "" if token_id in self._silent else piece_surface(self.processor, token_id)
