"""ChatGLM2-6B's tokenizer for transformers 5.

As upstream: `<unk>` pads, `</s>` ends, and no name inside text is a special token unless the caller has added it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from chatglm.errors import InvalidRequestError, MissingFileError
from chatglm.generation.detokenizer import join_surfaces
from chatglm.generation.text import clean_up_spaces
from chatglm.messages import Message, check_history, to_messages
from chatglm.models.chatglm2.template import encode_chat, render
from chatglm.models.chatglm2.tokenizer import VOCABULARY_NAME, ChatGLM2TextTokenizer
from chatglm.models.library_tokenizer import LibraryTokenizer

SPECIAL_TOKENS = {"unk_token": "<unk>", "pad_token": "<unk>", "eos_token": "</s>"}
NO_LIMIT = 10**9


class SentencePieceTokenizer(LibraryTokenizer):
    """A tokenizer of pieces and special tokens behind them; what its settings say of special tokens is passed over.

    Some published settings list role names as added tokens; they would be found inside text.
    """

    vocab_files_names = {"vocab_file": VOCABULARY_NAME}
    text_tokenizer: type[ChatGLM2TextTokenizer] = ChatGLM2TextTokenizer

    def __init__(self, vocab_file: str | None = None, **kwargs: Any) -> None:
        if vocab_file is None:
            raise MissingFileError(f"The folder has no {VOCABULARY_NAME}.", "Download it beside the weights.")
        self.vocab_file = vocab_file
        self.plain = self.text_tokenizer(vocab_file)
        pieces = {self._convert_id_to_token(i): i for i in range(self.plain.vocab_size)}
        self._base_vocab: dict[str, int] = pieces
        for name in ("auto_map", "bos_token", "model_specific_special_tokens", *SPECIAL_TOKENS):
            kwargs.pop(name, None)
        for name in ("additional_special_tokens", "extra_special_tokens"):
            if name in kwargs:
                kwargs[name] = [token for token in kwargs[name] or [] if str(token) not in pieces]
        added = kwargs.pop("added_tokens_decoder", None) or {}
        kwargs["added_tokens_decoder"] = {i: token for i, token in added.items() if i >= self.plain.vocab_size}
        super().__init__(**kwargs)
        self._special_tokens_map.update(SPECIAL_TOKENS)

    @property
    def vocab_size(self) -> int:
        return self.plain.vocab_size

    def get_vocab(self) -> dict[str, int]:
        return self._base_vocab | self._added_tokens_encoder

    def tokenize(self, text: str, **kwargs: Any) -> list[str]:
        """As the library's, which takes a text that is nothing but the name of a special token for that token."""
        named = set(SPECIAL_TOKENS.values()) - self._added_tokens_encoder.keys()
        tokens = super().tokenize(text, **kwargs)
        return [part for token in tokens for part in (self._tokenize(token) if token in named else [token])]

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        return [self._convert_id_to_token(i) for i in self.encode_plain(text)]

    def _convert_token_to_id(self, token: str) -> int:
        return self._base_vocab.get(token, self.plain.pad_token_id)

    def _convert_id_to_token(self, index: int) -> str:
        if index >= self.plain.num_pieces:
            at = index - self.plain.num_pieces
            return self.plain.special_names[at] if at < len(self.plain.special_names) else ""
        return str(self.plain.processor.id_to_piece(index)) if index >= 0 else ""

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return self._decode([self._convert_token_to_id_with_added_voc(token) for token in tokens])

    def _decode(
        self,
        token_ids: int | list[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **_: Any,
    ) -> str:
        """Tokens of roles stay, whatever `skip_special_tokens` says: answers are cut where they stand."""
        ids = [token_ids] if isinstance(token_ids, int) else [int(i) for i in token_ids]
        skipped = set(self.all_special_ids) if skip_special_tokens else set()
        text = join_surfaces((self.surface(i) for i in ids if i not in skipped), self.leading_spaces)
        is_asked = clean_up_tokenization_spaces
        cleans = self.clean_up_tokenization_spaces if is_asked is None else is_asked
        return clean_up_spaces(text) if cleans else text


class ChatGLM2Tokenizer(SentencePieceTokenizer):
    """Text to token ids and back; raises CheckpointError for an unusable `vocab_file`. Padding is on the left."""

    def build_prompt(self, query: str, history: Iterable[Sequence[str]] | None = None) -> str:
        """The text of a prompt: `history` as (query, answer) pairs, then the query."""
        return render(to_messages(query, check_history(history)))

    def encode_messages(self, messages: Sequence[Message], add_generation_prompt: bool) -> list[int]:
        if not add_generation_prompt:
            raise InvalidRequestError(
                "This model has no template without the place for an answer.", "Set add_generation_prompt=True."
            )
        return encode_chat(self, messages, NO_LIMIT).input_ids
