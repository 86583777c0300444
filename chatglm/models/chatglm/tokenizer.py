"""The tokenizer of ChatGLM-6B: special tokens around a text, and the ids of both releases. Pieces: `vocabulary.py`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from chatglm.checkpoints import read_json
from chatglm.generation.detokenizer import LeadingSpaces, join_surfaces
from chatglm.generation.text import clean_up_spaces, whole_characters
from chatglm.models.chatglm.vocabulary import PieceVocabulary
from chatglm.schema import FLAG, Rule, Rules, check_keys, list_of, number, one_of, table_of, text, whole

VOCABULARY_NAME = "ice_text.model"
SETTINGS_NAME = "tokenizer_config.json"
SPECIAL_TOKENS = [
    "unk_token",
    "bos_token",
    "eos_token",
    "eop_token",
    "end_token",
    "mask_token",
    "gmask_token",
    "pad_token",
]


def _is_token(value: Any) -> bool:
    content = value.get("content") if type(value) is dict else value
    return type(content) is str and len(content) <= 100


TOKEN = Rule("a token, as text or as the content of an object", _is_token)
TOKENS = Rule("a list of tokens", lambda value: list_of(TOKEN).accepts(value) or table_of(TOKEN).accepts(value))
OPTIONS: Rules = {
    "num_image_tokens": whole(0, 100_000),
    "do_lower_case": FLAG,
    "remove_space": FLAG,
    "clean_up_tokenization_spaces": FLAG.or_none(),
}
# Also of what transformers reads in the same file.
RULES: Rules = {
    **OPTIONS,
    **dict.fromkeys((*SPECIAL_TOKENS, "sep_token", "cls_token"), TOKEN.or_none()),
    "additional_special_tokens": TOKENS.or_none(),
    "extra_special_tokens": TOKENS.or_none(),
    "added_tokens_decoder": table_of(TOKEN),
    "padding_side": one_of("left", "right"),
    "truncation_side": one_of("left", "right"),
    "model_max_length": number(1, 1e31).or_none(),
    "model_input_names": list_of(text(100)),
    "split_special_tokens": FLAG,
}


class ChatGLMTextTokenizer:
    """Text to token ids and back; raises CheckpointError if `vocab_file` is missing, damaged or of another model.

    `vocab_file`: `ice_text.model` of either release, or one with the same special pieces. Ids below `num_image_tokens`
    stand for pictures: 20000 in folders of the first release (the default), 0 in v1.1.0. `remove_space` joins the words
    of a text with single spaces. `clean_up_tokenization_spaces`: decoding removes the spaces before English marks.
    `names` are those of bos_token, eos_token, end_token, mask_token, gmask_token, pad_token.
    """

    NAMES = {
        "unk_token": "<unk>",
        "bos_token": "<sop>",
        "eos_token": "<eop>",
        "end_token": "</s>",
        "mask_token": "[MASK]",
        "gmask_token": "[gMASK]",
        "pad_token": "<pad>",
    }

    def __init__(
        self,
        vocab_file: str | Path,
        *,
        num_image_tokens: int = 20000,
        do_lower_case: bool = False,
        remove_space: bool = False,
        clean_up_tokenization_spaces: bool = True,
        names: Mapping[str, str] | None = None,
    ) -> None:
        self.vocab_file = Path(vocab_file)
        self.pieces = PieceVocabulary(vocab_file)
        self.num_image_tokens = num_image_tokens
        self.do_lower_case, self.remove_space = do_lower_case, remove_space
        self.clean_up_tokenization_spaces = clean_up_tokenization_spaces
        self._ids = {name: self.token_to_id(token) for name, token in (self.NAMES | dict(names or {})).items()}
        self._surfaces: dict[int, str | bytes | None] = {}

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """The tokenizer of a model folder (tokenizer_config.json); raises CheckpointError for an unusable file."""
        settings = read_settings(folder)
        names = {name: _text_of(settings[name]) for name in (*cls.NAMES, "eop_token") if settings.get(name)}
        given = {name: settings[name] for name in OPTIONS if settings.get(name) is not None}
        return cls(folder / VOCABULARY_NAME, names=release_names(names), **given)

    @property
    def vocab_size(self) -> int:
        """Image ids and pieces; the model's embedding may have more rows."""
        return self.num_image_tokens + self.pieces.size

    @property
    def leading_spaces(self) -> LeadingSpaces:
        return self.pieces.leading_spaces

    @property
    def bos_token_id(self) -> int:
        """Id of `<sop>`."""
        return self._ids["bos_token"]

    @property
    def eos_token_id(self) -> int:
        """Id of `<eop>`."""
        return self._ids["eos_token"]

    @property
    def mask_token_id(self) -> int:
        return self._ids["mask_token"]

    @property
    def gmask_token_id(self) -> int:
        return self._ids["gmask_token"]

    @property
    def pad_token_id(self) -> int:
        return self._ids["pad_token"]

    def token_to_id(self, token: str) -> int:
        """The id of a piece or of `<image_n>`; the unknown id when there is none."""
        image = token.removeprefix("<image_").removesuffix(">")
        if token == f"<image_{image}>" and image.isdecimal() and int(image) < self.num_image_tokens:
            return int(image)
        return self.pieces.piece_to_id(whole_characters(token)) + self.num_image_tokens

    def preprocess_text(self, text: str) -> str:
        text = whole_characters(text)  # SentencePiece cannot take half a surrogate pair
        text = " ".join(text.strip().split()) if self.remove_space else text
        return text.lower() if self.do_lower_case else text

    def encode_plain(self, text: str) -> list[int]:
        """Ids of text from outside: `[gMASK]`, `<n>` stay characters; real newlines, tabs, blanks become symbols."""
        return [i + self.num_image_tokens for i in self.pieces.encode_plain(self.preprocess_text(text))]

    def build_inputs_with_special_tokens(self, prompt: Sequence[int], answer: Sequence[int] | None = None) -> list[int]:
        """`prompt [gMASK] <sop>`, or with an answer `prompt [gMASK] <sop> answer <eop>`."""
        ids = [*prompt, self.gmask_token_id, self.bos_token_id]
        return ids if answer is None else [*ids, *answer, self.eos_token_id]

    def surface(self, token_id: int) -> str | bytes | None:
        """What a token adds to a text: see `SurfaceTokenizer.surface`. None for pads and ids that are no token."""
        if token_id not in self._surfaces:
            is_text = self.num_image_tokens <= token_id < self.vocab_size and token_id != self.pad_token_id
            self._surfaces[token_id] = self.pieces.surface(token_id - self.num_image_tokens) if is_text else None
        return self._surfaces[token_id]

    def decode(self, token_ids: Iterable[int]) -> str:
        """The text of token ids; ids that are no token are passed over."""
        text = join_surfaces(map(self.surface, token_ids), self.leading_spaces)
        return clean_up_spaces(text) if self.clean_up_tokenization_spaces else text


def read_settings(folder: Path) -> dict[str, Any]:
    """The content of a folder's tokenizer_config.json, {} without one; raises CheckpointError for a wrong value."""
    path = folder / SETTINGS_NAME
    if not path.exists():
        return {}
    settings = read_json(path)
    check_keys(path, settings, RULES)
    return settings


def release_names(names: Mapping[str, str]) -> dict[str, str]:
    """Special tokens under v1.1.0's names: a first-release file names `<eop>` eop_token and `</s>` eos_token."""
    renamed = dict(names)
    eop_token = renamed.pop("eop_token", None)
    if eop_token is not None:
        renamed["eos_token"], renamed["end_token"] = eop_token, renamed.get("eos_token", "</s>")
    return renamed


def _text_of(token: Any) -> str:
    return str(token["content"] if isinstance(token, dict) else token)
