"""Token ids to text, one at a time, in linear time; each step holds back a bounded tail.

    ids -> SurfaceDecoder -> space clean-up -> the family's clean-up -> stop strings -> deltas

At every split the joined deltas equal the cleaned `tokenizer.decode(ids)`, cut before the first stop string.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from typing import Literal, Protocol

from chatglm.generation.stopping import StopFinder
from chatglm.generation.text import SPACE_RULES, Replacer
from chatglm.model_spec import TextStage

LeadingSpaces = Literal["keep", "drop one", "drop all"]
# What bytes that are no UTF-8 become: one U+FFFD each, as SentencePiece does, or one for what belongs together, as
# Python's errors="replace" does. A tokenizer whose `broken_bytes` says nothing has the first.
BrokenBytes = Literal["each", "together"]
SPACE_MARK = "▁"  # SentencePiece's own sign for a space inside a piece
REPLACEMENT = "\ufffd"


class SurfaceTokenizer(Protocol):
    """What a tokenizer must tell about its tokens to be decoded incrementally."""

    @property
    def clean_up_tokenization_spaces(self) -> bool: ...

    @property
    def leading_spaces(self) -> LeadingSpaces:
        """What decoding does with spaces at the start of a text."""
        ...

    def surface(self, token_id: int) -> str | bytes | None:
        """Text with `▁` for spaces; raw bytes; "" for a control token; None for an id that is passed over."""
        ...


class SurfaceDecoder:
    """Joins surfaces as SentencePiece decodes the list: byte runs are UTF-8; `broken_bytes` of it become U+FFFD."""

    def __init__(self, leading_spaces: LeadingSpaces, broken_bytes: BrokenBytes = "each") -> None:
        self._leading_spaces = leading_spaces
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace") if broken_bytes == "together" else None
        self._at_start = True
        self._bytes = b""

    def push(self, surface: str | bytes) -> str:
        if isinstance(surface, bytes):
            if self._utf8 is not None:
                text = self._utf8.decode(surface)
            else:
                self._bytes += surface
                text = self._read_bytes()
            self._at_start = self._at_start and not text
            return text
        before = self.finish()
        self._at_start = self._at_start and not before
        if self._at_start and self._leading_spaces != "keep" and surface.startswith(SPACE_MARK):
            surface = surface[1:]
            self._at_start = self._leading_spaces == "drop all"
        self._at_start = self._at_start and not surface
        return before + surface.replace(SPACE_MARK, " ")

    def finish(self) -> str:
        if self._utf8 is not None:
            return self._utf8.decode(b"", final=True)
        return self._read_bytes(ended=True) if self._bytes else ""

    def _read_bytes(self, ended: bool = False) -> str:
        text = ""
        while self._bytes and (ended or len(self._bytes) >= character_length(self._bytes[0])):
            length = character_length(self._bytes[0])
            try:
                text += self._bytes[:length].decode()
            except UnicodeDecodeError:
                # SentencePiece gives up a single byte and tries again from the next one; Python's errors="replace"
                # would swallow a whole broken sequence.
                text += REPLACEMENT
                length = 1
            self._bytes = self._bytes[length:]
        return text


def character_length(lead: int) -> int:
    """How many bytes a UTF-8 character with this first byte has; 1 for a byte that cannot be first."""
    return 2 if 0xC0 <= lead < 0xE0 else 3 if 0xE0 <= lead < 0xF0 else 4 if 0xF0 <= lead < 0xF8 else 1


class IncrementalDetokenizer:
    """An answer as it grows, cut before the first stop string of the cleaned text; InvalidRequestError if empty."""

    def __init__(
        self, tokenizer: SurfaceTokenizer, stop_strings: Sequence[str] = (), clean_up: Sequence[TextStage] = ()
    ) -> None:
        self._tokenizer = tokenizer
        self._decoder = SurfaceDecoder(tokenizer.leading_spaces, getattr(tokenizer, "broken_bytes", "each"))
        self._stop_finder = StopFinder(stop_strings)
        spaces = [Replacer(*rule) for rule in SPACE_RULES] if tokenizer.clean_up_tokenization_spaces else []
        self._stages: list[TextStage] = [*spaces, *clean_up, self._stop_finder]
        self._deltas: list[str] = []
        self._num_known = 0

    def resume(self, token_ids: Iterable[int], text: str) -> None:
        """Take the beginning of an answer, `text` as these ids; what is returned from now on follows it."""
        self._num_known = len(text)
        for token_id in token_ids:
            self.push(token_id)

    @property
    def text(self) -> str:
        self._deltas = ["".join(self._deltas)]
        return self._deltas[0]

    @property
    def stopped(self) -> bool:
        """Whether a stop string was met; the text ends before it and further ids add nothing."""
        return self._stop_finder.stopped

    def push(self, token_id: int) -> str:
        """Take one id; return the new text that nothing later can change, often ""."""
        surface = None if self.stopped else self._tokenizer.surface(int(token_id))
        text = "" if surface is None else self._decoder.push(surface)
        for stage in self._stages:
            if not text:
                return ""
            text = stage.push(text)
        return self._new(text)

    def finish(self) -> str:
        """The answer is complete: return the text still held back. A second call returns ""."""
        text = self._decoder.finish()
        for stage in self._stages:
            text = stage.push(text) + stage.finish()
        return self._new(text)

    def _new(self, text: str) -> str:
        """What of it was not known before; kept as part of the answer."""
        num_known = min(self._num_known, len(text))
        self._num_known -= num_known
        self._deltas.append(text[num_known:])
        return text[num_known:]


def join_surfaces(
    surfaces: Iterable[str | bytes | None], leading_spaces: LeadingSpaces, broken_bytes: BrokenBytes = "each"
) -> str:
    """The raw text of a whole list of surfaces: the fold of `SurfaceDecoder`."""
    decoder = SurfaceDecoder(leading_spaces, broken_bytes)
    pushed = [decoder.push(surface) for surface in surfaces if surface is not None]
    return "".join(pushed) + decoder.finish()
