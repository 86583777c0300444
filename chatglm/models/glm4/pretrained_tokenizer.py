"""GLM-4's tokenizer for transformers 5.

As upstream: `encode` finds names of special tokens inside text, `decode` puts blanks around them; prompts do not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AddedToken

from chatglm.errors import MissingFileError
from chatglm.generation.detokenizer import join_surfaces
from chatglm.generation.text import clean_up_spaces
from chatglm.messages import Message
from chatglm.models.glm4.template import encode_turn
from chatglm.models.glm4.tokenizer import GLM4TextTokenizer, stored_special_ids
from chatglm.models.glm4.vocabulary import (
    JSON_NAME,
    RANKS_NAME,
    JsonVocabulary,
    RanksVocabulary,
    Vocabulary,
    characters_of,
)
from chatglm.models.library_tokenizer import RoleTokenizer


class GLM4Tokenizer(RoleTokenizer):
    """Text to token ids and back; raises CheckpointError for unusable files. Padding is on the left.

    `vocab_file`: tokenizer.model of a published folder; without one `tokenizer_file`, tokenizer.json of a native one.
    """

    vocab_files_names = {"vocab_file": RANKS_NAME, "tokenizer_file": JSON_NAME}

    def __init__(self, vocab_file: str | None = None, tokenizer_file: str | None = None, **kwargs: Any) -> None:
        if vocab_file is None and tokenizer_file is None:
            raise MissingFileError(f"The folder has no {RANKS_NAME}.", "Download it beside the weights.")
        added = kwargs.pop("added_tokens_decoder", None) or {}
        vocabulary: Vocabulary = (
            JsonVocabulary(Path(str(tokenizer_file))) if vocab_file is None else RanksVocabulary(Path(vocab_file))
        )
        known = {str(token.content): i for i, token in added.items()} or vocabulary.special_ids
        self.plain = GLM4TextTokenizer(vocabulary, known, f" in {Path(str(vocab_file or tokenizer_file)).parent}")
        self._base_vocab = {characters_of(vocabulary.token_bytes(i)): i for i in range(vocabulary.size)}
        kwargs.pop("auto_map", None)  # it names remote code that is never needed and must not be saved again
        kwargs["added_tokens_decoder"] = {i: _special(name) for name, i in self.plain.special_ids.items()} | added
        if not (kwargs.get("extra_special_tokens") or kwargs.get("additional_special_tokens")):
            kwargs["extra_special_tokens"] = list(self.plain.special_ids)
        super().__init__(**{"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"} | kwargs)

    def build_single_message(  # type: ignore[override]
        self, role: str, metadata: str, message: str, tokenize: bool = True
    ) -> list[int] | str:
        """As `RoleTokenizer`; `tokenize` False gives its text."""
        ids = super().build_single_message(role, metadata, message)
        return ids if tokenize else f"<|{role}|>{metadata}\n{message}"

    @classmethod
    def check_folder(cls, folder: Path) -> None:
        stored_special_ids(folder)

    @property
    def vocab_size(self) -> int:
        """Byte pairs only; `len` counts special tokens as well."""
        return self.plain.vocabulary.size

    def get_vocab(self) -> dict[str, int]:
        return self._base_vocab | self._added_tokens_encoder

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        return [self._convert_id_to_token(i) for i in self.encode_plain(text)]

    def _convert_token_to_id(self, token: str) -> int | None:
        return self._base_vocab.get(token)

    def _convert_id_to_token(self, index: int) -> str:
        is_piece = 0 <= index < self.vocab_size
        return characters_of(self.plain.vocabulary.token_bytes(index)) if is_piece else ""

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        ids = [self._convert_token_to_id_with_added_voc(token) for token in tokens]
        return join_surfaces((self.surface(i) for i in ids if i is not None), "keep", "together")

    def _decode(
        self,
        token_ids: int | list[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        spaces_between_special_tokens: bool = True,
        **_: Any,
    ) -> str:
        ids = [token_ids] if isinstance(token_ids, int) else [int(i) for i in token_ids]
        skipped = set(self.all_special_ids) if skip_special_tokens else set()
        parts: list[str] = []
        run: list[int] = []
        for token_id in [i for i in ids if i not in skipped]:
            if token_id not in self._added_tokens_decoder:
                run.append(token_id)
                continue
            parts += [*([self._run_text(run)] if run else []), str(self._added_tokens_decoder[token_id].content)]
            run = []
        parts += [self._run_text(run)] if run else []
        text = (" " if spaces_between_special_tokens else "").join(parts)
        is_asked = clean_up_tokenization_spaces
        cleans = self.clean_up_tokenization_spaces if is_asked is None else is_asked
        return clean_up_spaces(text) if cleans else text

    def encode_turn(self, message: Message) -> list[int]:
        return encode_turn(self, message)

    def _run_text(self, ids: list[int]) -> str:
        return join_surfaces(map(self.surface, ids), "keep", "together")


def _special(name: str) -> AddedToken:
    return AddedToken(name, normalized=False, special=True)
