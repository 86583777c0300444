"""Tokenizers of ChatGLM2-6B and later for transformers: padding, positions, prompts, files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import BatchEncoding, PreTrainedTokenizer
from transformers.utils.generic import PaddingStrategy

from chatglm.errors import ChatGLMError, DamagedFileError, InvalidRequestError
from chatglm.generation.detokenizer import BrokenBytes, LeadingSpaces
from chatglm.messages import Message, to_message

TURN_ROLES = ("system", "user", "assistant", "observation")


class LibraryTokenizer(PreTrainedTokenizer):
    """Everything but the vocabulary, which `plain` holds, the text tokenizer of the family.

    Subclasses set `plain` before they call `__init__`, and define how tokens are named and decoded.
    """

    model_input_names = ["input_ids", "attention_mask", "position_ids"]
    padding_side = "left"
    pads_right = False
    plain: Any

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As the library's; raises CheckpointError for files of a local folder that cannot be used."""
        kwargs.pop("trust_remote_code", None)
        if not os.path.isdir(pretrained_model_name_or_path):
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        cls.check_folder(Path(pretrained_model_name_or_path))
        try:
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        except ChatGLMError:
            raise
        except Exception as error:  # the library fails in its own ways for the other files and keys that it reads
            raise DamagedFileError(
                f"The tokenizer in {pretrained_model_name_or_path} cannot be read: {error}.", "Download it again."
            ) from None

    @classmethod
    def check_folder(cls, folder: Path) -> None:
        """Raise CheckpointError for settings of a folder that cannot be used."""

    @property
    def leading_spaces(self) -> LeadingSpaces:
        return self.plain.leading_spaces

    @property
    def broken_bytes(self) -> BrokenBytes:
        return getattr(self.plain, "broken_bytes", "each")

    def surface(self, token_id: int) -> str | bytes | None:
        added = self._added_tokens_decoder.get(token_id)
        return self.plain.surface(token_id) if added is None else str(added.content)

    def special_id(self, name: str) -> int:
        """The id of a special token such as `[gMASK]` or `<|user|>`; KeyError if there is none of that name."""
        return self.plain.special_id(name)

    get_command = special_id

    def encode_plain(self, text: str) -> list[int]:
        return self.plain.encode_plain(text)

    def _convert_id_to_token(self, index: int) -> str:
        raise NotImplementedError

    def get_prefix_tokens(self) -> list[int]:
        """The ids in front of every text."""
        return self.plain.build_inputs_with_special_tokens([])

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        return self.plain.build_inputs_with_special_tokens(token_ids_0, token_ids_1)

    def get_special_tokens_mask(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None, already_has_special_tokens: bool = False
    ) -> list[int]:
        if already_has_special_tokens:
            return list(super().get_special_tokens_mask(token_ids_0, token_ids_1, already_has_special_tokens=True))
        mask = [1, 1] + [0] * len(token_ids_0)
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
        """Pad one row, with mask and positions, 0 on pads; raises InvalidRequestError for a side that is not for it."""
        ids = list(encoded_inputs["input_ids"])
        length = max_length if padding_strategy == PaddingStrategy.MAX_LENGTH and max_length is not None else len(ids)
        if padding_strategy != PaddingStrategy.DO_NOT_PAD and pad_to_multiple_of:
            length = -(-length // pad_to_multiple_of) * pad_to_multiple_of
        num_pads, side = max(0, length - len(ids)), padding_side or self.padding_side
        if num_pads and side != "left" and not self.pads_right:
            raise InvalidRequestError("This model can only be padded on the left.", 'Set padding_side="left".')
        rows = {"input_ids": (ids, int(self.pad_token_id))}
        if return_attention_mask is not False:
            rows["attention_mask"] = (list(encoded_inputs.get("attention_mask", [1] * len(ids))), 0)
        rows["position_ids"] = (list(encoded_inputs.get("position_ids", range(len(ids)))), 0)
        for name, filler in (("token_type_ids", self.pad_token_type_id), ("special_tokens_mask", 1)):
            if name in encoded_inputs:
                rows[name] = (list(encoded_inputs[name]), filler)
        for name, (values, filler) in rows.items():
            pads = [filler] * num_pads
            encoded_inputs[name] = values + pads if side == "right" else pads + values
        return encoded_inputs

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        source = Path(self.plain.vocab_file)
        target = Path(save_directory) / (f"{filename_prefix}-{source.name}" if filename_prefix else source.name)
        content = source.read_bytes() if source.is_file() else self.plain.vocabulary_bytes()
        target.write_bytes(content)
        return (str(target),)

    def encode_messages(self, messages: Sequence[Message], add_generation_prompt: bool) -> list[int]:
        """The ids of a conversation as the family's template makes them."""
        raise NotImplementedError

    def apply_chat_template(
        self,
        conversation: Any,
        tools: Any = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        tokenize: bool = True,
        padding: bool | str = False,
        truncation: bool = False,
        max_length: int | None = None,
        return_tensors: Any = None,
        return_dict: bool = True,
        **kwargs: Any,
    ) -> Any:
        """The prompt of a conversation, or of a list of such, as the model was trained with it.

        Text in messages never becomes a control token. A `chat_template` of one's own is used as by the library.
        `tools` are offered by the first system message. Raises InvalidRequestError for messages of another form.
        """
        if chat_template is not None:
            kwargs |= {"padding": padding, "truncation": truncation, "max_length": max_length}
            kwargs |= {"tokenize": tokenize, "return_tensors": return_tensors, "return_dict": return_dict}
            kwargs |= {"tools": tools, "chat_template": chat_template, "add_generation_prompt": add_generation_prompt}
            return super().apply_chat_template(conversation, **kwargs)
        is_batch = isinstance(conversation, (list, tuple)) and isinstance(next(iter(conversation), None), (list, tuple))
        rows = [
            self.encode_messages(_with_tools(one, tools), add_generation_prompt)
            for one in (conversation if is_batch else [conversation])
        ]
        if truncation and max_length is not None:
            rows = [row[:max_length] for row in rows]
        if not tokenize:
            texts = [self.plain.decode(row) for row in rows]
            return texts if is_batch else texts[0]
        is_nested = is_batch or return_tensors is not None
        batch = {"input_ids": rows if is_nested else rows[0]}
        encoded = self.pad(batch, padding=padding, max_length=max_length, return_tensors=return_tensors)
        return encoded if return_dict else encoded["input_ids"]


class RoleTokenizer(LibraryTokenizer):
    """A tokenizer of a family with role tokens."""

    def build_single_message(self, role: str, metadata: str, message: str) -> list[int]:
        """The ids of one message: its role, `{metadata}\\n`, and the message, the two encoded by themselves."""
        return [self.role_id(role), *self.encode_plain(f"{metadata}\n"), *self.encode_plain(message)]

    def build_chat_input(
        self, query: str, history: Iterable[Mapping[str, Any]] | None = None, role: str = "user"
    ) -> BatchEncoding:
        """Tensors [1, n] of the prompt: `history` as dicts of role, content, metadata and tools, then the query."""
        messages = [*map(to_message, history or []), Message(_role(role), query)]
        batch = {"input_ids": [self.encode_messages(messages, add_generation_prompt=True)]}
        return self.pad(batch, padding=False, return_tensors="pt")

    def role_id(self, role: str) -> int:
        return self.special_id(f"<|{_role(role)}|>")

    def encode_messages(self, messages: Sequence[Message], add_generation_prompt: bool) -> list[int]:
        ids = [i for message in messages for i in self.encode_turn(message)]
        end = [self.special_id("<|assistant|>")] if add_generation_prompt else []
        return self.plain.build_inputs_with_special_tokens([*ids, *end])

    def encode_turn(self, message: Message) -> list[int]:
        """The ids of one message as the family's template makes them."""
        raise NotImplementedError


def _role(role: str) -> Any:
    if role not in TURN_ROLES:
        raise InvalidRequestError(f"There is no role {role!r}.", f"The roles are {', '.join(TURN_ROLES)}.")
    return role


def _with_tools(conversation: Iterable[Mapping[str, Any]], tools: Any) -> list[Message]:
    """The messages of a conversation, `tools` in its first system message."""
    messages = [to_message(entry) for entry in conversation]
    if not tools:
        return messages
    at = next((number for number, message in enumerate(messages) if message.role == "system"), None)
    if at is None:
        return [Message("system", "", tools=tuple(tools)), *messages]
    first = messages[at]
    messages[at] = Message("system", first.content, first.metadata, (*first.tools, *tools))
    return messages
