"""ChatGLM-6B's tokenizer for transformers 5: padding, masks, positions and files around `ChatGLMTextTokenizer`.

Unlike upstream: later positions repeat [gMASK]'s place, else [MASK]'s, as in the network; decoding passes over ids that
are no token; only real `<n>` tokens decode to a newline; masks and positions are given exactly when padding.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from transformers import AddedToken, PreTrainedTokenizer
from transformers.utils.generic import PaddingStrategy

from chatglm.errors import ChatGLMError, DamagedFileError, InvalidRequestError, MissingFileError
from chatglm.generation.detokenizer import LeadingSpaces, join_surfaces
from chatglm.generation.text import clean_up_spaces
from chatglm.models.chatglm.padding import pad_row
from chatglm.models.chatglm.tokenizer import VOCABULARY_NAME, ChatGLMTextTokenizer, read_settings, release_names


class ChatGLMTokenizer(PreTrainedTokenizer):
    """Text to token ids and back; parameters and errors as `ChatGLMTextTokenizer`. Padding is on the left.

    First-release names change to v1.1.0's: `<eop>` `eop_token` to `eos_token`, `</s>` `eos_token` to `end_token`.
    """

    vocab_files_names = {"vocab_file": VOCABULARY_NAME}
    model_input_names = ["input_ids", "attention_mask", "position_ids"]
    padding_side = "left"

    def __init__(
        self,
        vocab_file: str | None = None,
        do_lower_case: bool = False,
        remove_space: bool = False,
        unk_token: str = "<unk>",
        bos_token: str = "<sop>",
        eos_token: str = "<eop>",
        end_token: str = "</s>",
        mask_token: str = "[MASK]",
        gmask_token: str = "[gMASK]",
        pad_token: str = "<pad>",
        padding_side: str = "left",
        num_image_tokens: int = 20000,
        **kwargs: Any,
    ) -> None:
        if vocab_file is None:
            raise MissingFileError("The folder has no ice_text.model.", "Download it beside the weights.")
        # transformers 5 moves `*_token` keys it does not know into this dict. Were they left in it, "[gMASK]" and
        # "</s>" typed by a person would become special tokens, which they never were.
        named = dict(kwargs.pop("model_specific_special_tokens", None) or {})
        eop_token = named.pop("eop_token", None) or kwargs.pop("eop_token", None)
        names = {"gmask_token": named.pop("gmask_token", gmask_token), "end_token": named.pop("end_token", end_token)}
        names |= {"eos_token": eos_token} | ({} if eop_token is None else {"eop_token": eop_token})
        if named:
            kwargs["model_specific_special_tokens"] = named
        kwargs.pop("auto_map", None)  # it names remote code that is never needed and must not be saved again
        kwargs.setdefault("clean_up_tokenization_spaces", True)
        names = release_names({name: str(token) for name, token in names.items()})
        special = {"unk_token": unk_token, "bos_token": bos_token, "eos_token": names["eos_token"]}
        special |= {"mask_token": mask_token, "pad_token": pad_token}
        self.plain = ChatGLMTextTokenizer(
            vocab_file,
            num_image_tokens=num_image_tokens,
            do_lower_case=do_lower_case,
            remove_space=remove_space,
            names={name: str(token) for name, token in (special | names).items()},
        )
        self.pieces = self.plain.pieces
        self.vocab_file = vocab_file
        self.num_image_tokens = num_image_tokens
        self.gmask_token, self.end_token = names["gmask_token"], names["end_token"]
        self.do_lower_case, self.remove_space = do_lower_case, remove_space
        images = {f"<image_{i}>": i for i in range(num_image_tokens)}
        texts = {self.pieces.id_to_piece(i): i + num_image_tokens for i in range(self.pieces.size)}
        self._base_vocab: dict[str, int] = images | texts
        # Given as decoded tokens because transformers 5 forgets that they take the white space around them along.
        known = {
            self._base_vocab[str(name)]: _special(name) for name in special.values() if str(name) in self._base_vocab
        }
        kwargs["added_tokens_decoder"] = (kwargs.get("added_tokens_decoder") or {}) | known
        super().__init__(padding_side=padding_side, **special, **kwargs)
        # What save_pretrained writes beside the tokens that transformers itself knows.
        own = ("num_image_tokens", "gmask_token", "end_token", "do_lower_case", "remove_space")
        self.init_kwargs.update({name: getattr(self, name) for name in own})

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As the library's; raises CheckpointError for files of a local folder that cannot be used."""
        if not os.path.isdir(pretrained_model_name_or_path):
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        read_settings(Path(pretrained_model_name_or_path))
        try:
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        except ChatGLMError:
            raise
        except Exception as error:  # the library fails in its own ways for the other files and keys that it reads
            raise DamagedFileError(
                f"The tokenizer in {pretrained_model_name_or_path} cannot be read: {error}.", "Download it again."
            ) from None

    @property
    def vocab_size(self) -> int:
        return self.num_image_tokens + self.pieces.size

    @property
    def leading_spaces(self) -> LeadingSpaces:
        return self.pieces.leading_spaces

    @property
    def gmask_token_id(self) -> int:
        return self._convert_token_to_id(self.gmask_token)

    @property
    def end_token_id(self) -> int:
        return self._convert_token_to_id(self.end_token)

    @property
    def sop_token_id(self) -> int:
        return int(self.bos_token_id)

    @property
    def eop_token_id(self) -> int:
        return int(self.eos_token_id)

    def get_vocab(self) -> dict[str, int]:
        return self._base_vocab | self._added_tokens_encoder

    def _update_total_vocab_size(self) -> None:
        # The inherited version lists all 130,000 tokens whenever one is added.
        self.total_vocab_size = self.vocab_size + sum(i >= self.vocab_size for i in self._added_tokens_decoder)

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        return self.pieces.tokenize(self.plain.preprocess_text(text))

    def encode_plain(self, text: str) -> list[int]:
        return self.plain.encode_plain(text)

    def _convert_token_to_id(self, token: str) -> int:
        return self._base_vocab.get(token, self.pieces.unk_id + self.num_image_tokens)

    def _convert_id_to_token(self, index: int) -> str:
        if 0 <= index < self.num_image_tokens:
            return f"<image_{index}>"
        is_piece = 0 <= index < self.vocab_size
        return self.pieces.id_to_piece(index - self.num_image_tokens) if is_piece else str(self.unk_token)

    def surface(self, token_id: int) -> str | bytes | None:
        if not self.num_image_tokens <= token_id < self.vocab_size:
            added = self._added_tokens_decoder.get(token_id)
            return None if added is None else str(added.content)
        return self.plain.surface(token_id)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        ids = [self._convert_token_to_id_with_added_voc(token) for token in tokens]
        return join_surfaces(map(self.surface, ids), self.leading_spaces)

    def _decode(
        self,
        token_ids: int | list[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **_: Any,
    ) -> str:
        ids = [token_ids] if isinstance(token_ids, int) else [int(i) for i in token_ids]
        skipped = set(self.all_special_ids) if skip_special_tokens else set()
        text = join_surfaces((self.surface(i) for i in ids if i not in skipped), self.leading_spaces)
        cleans = (
            self.clean_up_tokenization_spaces if clean_up_tokenization_spaces is None else clean_up_tokenization_spaces
        )
        return clean_up_spaces(text) if cleans else text

    def clean_up_tokenization(self, text: str) -> str:
        return clean_up_spaces(text)

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        return self.plain.build_inputs_with_special_tokens(token_ids_0, token_ids_1)

    def get_special_tokens_mask(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None, already_has_special_tokens: bool = False
    ) -> list[int]:
        if already_has_special_tokens:
            return list(super().get_special_tokens_mask(token_ids_0, token_ids_1, already_has_special_tokens=True))
        mask = [0] * len(token_ids_0) + [1, 1]
        return mask if token_ids_1 is None else [*mask, *[0] * len(token_ids_1), 1]

    def _pad(
        self,
        encoded_inputs: Any,
        max_length: int | None = None,
        padding_strategy: PaddingStrategy = PaddingStrategy.DO_NOT_PAD,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_attention_mask: bool | None = None,
    ) -> Any:
        """Pad one row on the left, with masks and positions (`pad_row`); raises InvalidRequestError for the right."""
        if padding_strategy == PaddingStrategy.DO_NOT_PAD:
            return encoded_inputs
        if (padding_side or self.padding_side) != "left":
            raise InvalidRequestError("ChatGLM-6B can only be padded on the left.", 'Set padding_side="left".')
        ids = list(encoded_inputs["input_ids"])
        length = len(ids) if padding_strategy == PaddingStrategy.LONGEST or max_length is None else max_length
        if pad_to_multiple_of:
            length = -(-length // pad_to_multiple_of) * pad_to_multiple_of
        mask_ids = (self.gmask_token_id, self.mask_token_id)
        padded, mask, positions = pad_row(ids, length, self.pad_token_id, self.sop_token_id, mask_ids)
        encoded_inputs["input_ids"] = padded
        if return_attention_mask is not False:
            encoded_inputs["attention_mask"] = mask
        encoded_inputs["position_ids"] = positions
        for name, filler in (("token_type_ids", self.pad_token_type_id), ("special_tokens_mask", 1)):
            if name in encoded_inputs:
                encoded_inputs[name] = [filler] * (len(padded) - len(ids)) + list(encoded_inputs[name])
        return encoded_inputs

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        target = Path(save_directory) / f"{prefix}{self.vocab_files_names['vocab_file']}"
        source = Path(self.vocab_file)
        content = source.read_bytes() if source.is_file() else self.pieces.processor.serialized_model_proto()
        target.write_bytes(content)
        return (str(target),)


def _special(token: str | AddedToken) -> AddedToken:
    """A token recognised inside text together with the white space around it, as by transformers 4.27."""
    return AddedToken(str(token), lstrip=True, rstrip=True, normalized=False, special=True)
