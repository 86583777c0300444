"""The tokenizer of GLM-4: byte pairs, then special tokens that no text spells.

[gMASK]<sop>text            ids 0 ... 151328 byte pairs, 151329 <|endoftext|>, ..., 151342 <|end_of_video|>
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from chatglm.checkpoints import read_json
from chatglm.errors import MismatchError
from chatglm.generation.detokenizer import join_surfaces
from chatglm.generation.text import whole_characters
from chatglm.models.glm4.vocabulary import JSON_NAME, RANKS_NAME, JsonVocabulary, RanksVocabulary, Vocabulary
from chatglm.schema import Rule, Rules, check_keys, table_of

SETTINGS_NAME = "tokenizer_config.json"
SPECIAL_NAMES = (
    "<|endoftext|>",
    "[MASK]",
    "[gMASK]",
    "[sMASK]",
    "<sop>",
    "<eop>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|observation|>",
    "<|begin_of_image|>",
    "<|end_of_image|>",
    "<|begin_of_video|>",
    "<|end_of_video|>",
)
NEEDED = ("<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")


def _is_added(value: Any) -> bool:
    return type(value) is dict and type(value.get("content")) is str and len(value["content"]) <= 100


RULES: Rules = {"added_tokens_decoder": table_of(Rule("objects with the content of a token", _is_added))}


class GLM4TextTokenizer:
    """Text to token ids and back; raises MismatchError unless `special_ids` are those of a GLM-4 model.

    `special_ids` None: the published names, behind the byte pairs.
    """

    leading_spaces: Literal["keep"] = "keep"
    broken_bytes: Literal["together"] = "together"
    clean_up_tokenization_spaces = False

    def __init__(self, vocabulary: Vocabulary, special_ids: Mapping[str, int] | None = None, where: str = "") -> None:
        self.vocabulary = vocabulary
        if special_ids is None:
            special_ids = {name: vocabulary.size + number for number, name in enumerate(SPECIAL_NAMES)}
        self.special_ids = dict(special_ids)
        missing = [name for name in NEEDED if name not in self.special_ids]
        if missing or sorted(self.special_ids.values())[0] != vocabulary.size:
            problem = f"no token {missing[0]}" if missing else "special tokens that do not follow its pieces"
            raise MismatchError(
                f"The tokenizer{where} has {vocabulary.size:,} pieces and {problem}.",
                "It is damaged, or not of a GLM-4 model: download its files again.",
            )
        self._names = {i: name for name, i in self.special_ids.items()}
        self.pad_token_id = self.eos_token_id = self.special_id("<|endoftext|>")

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """The tokenizer of a model folder: tokenizer.model, otherwise tokenizer.json; raises CheckpointError."""
        vocabulary = read_vocabulary(folder)
        special_ids = stored_special_ids(folder) if vocabulary.special_ids is None else vocabulary.special_ids
        return cls(vocabulary, special_ids, f" in {folder}")

    @property
    def vocab_file(self) -> Path:
        return self.vocabulary.path

    def vocabulary_bytes(self) -> bytes:
        """The content of a vocabulary file that is gone."""
        return self.vocabulary.serialize()

    @property
    def vocab_size(self) -> int:
        """Byte pairs and special tokens; the model's embedding has more rows."""
        return max(self._names) + 1

    def special_id(self, name: str) -> int:
        """The id of a special token; KeyError if there is none of that name."""
        return self.special_ids[name]

    def encode_plain(self, text: str) -> list[int]:
        """Ids of text from outside: names of special tokens in it stay characters."""
        return self.vocabulary.encode(whole_characters(text))

    def build_inputs_with_special_tokens(self, prompt: Sequence[int], answer: Sequence[int] | None = None) -> list[int]:
        """`[gMASK]<sop>prompt`, or with an answer `[gMASK]<sop>prompt answer<|endoftext|>`."""
        ids = [self.special_id("[gMASK]"), self.special_id("<sop>"), *prompt]
        return ids if answer is None else [*ids, *answer, self.eos_token_id]

    def surface(self, token_id: int) -> str | bytes | None:
        """What a token adds to a text: see `SurfaceTokenizer.surface`. None for an id that is no token."""
        if 0 <= token_id < self.vocabulary.size:
            return self.vocabulary.token_bytes(token_id)
        return self._names.get(token_id)

    def decode(self, token_ids: Iterable[int]) -> str:
        """The text of token ids; ids that are no token are passed over."""
        return join_surfaces(map(self.surface, token_ids), self.leading_spaces, self.broken_bytes)


def read_vocabulary(folder: Path) -> Vocabulary:
    """The vocabulary of a folder: native ones have a tokenizer.json only; raises CheckpointError."""
    is_native = (folder / JSON_NAME).exists() and not (folder / RANKS_NAME).exists()
    return JsonVocabulary(folder / JSON_NAME) if is_native else RanksVocabulary(folder / RANKS_NAME)


def stored_special_ids(folder: Path) -> dict[str, int] | None:
    """Special tokens by name that tokenizer_config.json lists; None if it lists none. Raises CheckpointError."""
    path = folder / SETTINGS_NAME
    if not path.exists():
        return None
    settings = read_json(path)
    check_keys(path, settings, RULES)
    added = settings.get("added_tokens_decoder", {})
    return {token["content"]: int(i) for i, token in added.items() if i.isdecimal()} or None
