"""One request's limits and sampling parameters, checked before a model is touched."""

from __future__ import annotations

import math
import reprlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from chatglm.errors import InvalidRequestError
from chatglm.schema import FLAG, Rules, first_mistake, list_of, number, text, whole

# Upstream's chat() defaults. top_k = 50 was active there without being visible: it was the library's default.
CHAT_DEFAULTS: dict[str, Any] = {
    "max_length": 2048,
    "do_sample": True,
    "temperature": 0.95,
    "top_p": 0.7,
    "top_k": 50,
    "repetition_penalty": 1.0,
}


# Scores divided by less would leave the range of float32; sampling is greedy long before.
LEAST_TEMPERATURE = 1e-6
LARGEST = sys.float_info.max


TOKEN_ID, COUNT = whole(0, 2**31 - 1), whole(0, 10_000_000)
LIBRARY_RULES: Rules = {
    **dict.fromkeys(("bos_token_id", "pad_token_id"), TOKEN_ID.or_none()),
    "eos_token_id": TOKEN_ID.or_list().or_none(),
    **dict.fromkeys(("max_new_tokens", "min_new_tokens", "min_length", "no_repeat_ngram_size"), COUNT.or_none()),
    "num_beams": whole(1, 1000).or_none(),
    **dict.fromkeys(("length_penalty", "typical_p", "min_p"), number().or_none()),
    "bad_words_ids": list_of(list_of(TOKEN_ID)).or_none(),
    "suppress_tokens": list_of(TOKEN_ID).or_none(),
    "early_stopping": FLAG.or_none(),
    "use_cache": FLAG.or_none(),
    "transformers_version": text(100).or_none(),
}


@dataclass(frozen=True)
class GenerationConfig:
    """How one answer is made.

    Attributes:
        max_length: tokens of prompt and answer together; clamped to the model's context.
        max_new_tokens: tokens of the answer alone; None = only `max_length` limits.
        do_sample: draw from the distribution; False = always the best token.
        temperature: logits are divided by it; 0 = greedy.
        top_k: keep the k best tokens (and ties of the k-th); 0 = all.
        top_p: keep the smallest set of best tokens with this much probability; 1 = all.
        repetition_penalty: > 1 makes seen tokens less likely (Keskar et al., "CTRL", https://arxiv.org/abs/1909.05858).
        min_new_tokens: the answer does not end before so many tokens.
        min_length: likewise for prompt and answer together, as upstream's.
        eos_token_id: the id that ends the answer; None = the model's.
        seed: same seed, same text, in any batch and on any device; None = different every time.
        stop: strings that end the answer; they are not part of it.
    """

    max_length: int = CHAT_DEFAULTS["max_length"]
    max_new_tokens: int | None = None
    do_sample: bool = CHAT_DEFAULTS["do_sample"]
    temperature: float = CHAT_DEFAULTS["temperature"]
    top_k: int = CHAT_DEFAULTS["top_k"]
    top_p: float = CHAT_DEFAULTS["top_p"]
    repetition_penalty: float = CHAT_DEFAULTS["repetition_penalty"]
    min_new_tokens: int = 0
    min_length: int = 0
    eos_token_id: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        stop: Any = (self.stop,) if isinstance(self.stop, str) else self.stop
        if not isinstance(stop, list | tuple) or not all(isinstance(text, str) and text for text in stop):
            raise InvalidRequestError(f"stop must be text or a list of it, none of it empty, not {reprlib.repr(stop)}.")
        object.__setattr__(self, "stop", tuple(stop))
        if not isinstance(self.do_sample, bool):
            raise InvalidRequestError(f"do_sample must be true or false, not {reprlib.repr(self.do_sample)}.")
        _require_integer("max_length", self.max_length, 1)
        _require_integer("max_new_tokens", self.max_new_tokens, 1, optional=True)
        _require_integer("top_k", self.top_k, 0)
        _require_integer("min_new_tokens", self.min_new_tokens, 0)
        _require_integer("min_length", self.min_length, 0)
        _require_integer("eos_token_id", self.eos_token_id, 0, optional=True)
        if self.eos_token_id is not None and self.eos_token_id >= 2**31:
            raise InvalidRequestError(f"eos_token_id {reprlib.repr(self.eos_token_id)} is no token of any vocabulary.")
        _require_integer("seed", self.seed, 0, optional=True)
        _require_number("temperature", self.temperature, 0, math.inf, includes_low=True)
        _require_number("top_p", self.top_p, 0, 1, includes_low=True)
        _require_number("repetition_penalty", self.repetition_penalty, 0, math.inf)
        for name in ("temperature", "top_p", "repetition_penalty"):  # whole numbers may be too large for torch
            object.__setattr__(self, name, float(getattr(self, name)))

    @property
    def is_greedy(self) -> bool:
        return not self.do_sample or self.temperature < LEAST_TEMPERATURE or self.top_k == 1

    @classmethod
    def names(cls) -> set[str]:
        return {field.name for field in fields(cls)}

    @classmethod
    def of(cls, defaults: dict[str, Any], **parameters: Any) -> GenerationConfig:
        """A config from defaults and a request's parameters (None = not given); raises InvalidRequestError."""
        unknown = sorted(parameters.keys() - cls.names())
        if unknown:
            known = ", ".join(sorted(cls.names()))
            raise InvalidRequestError(f"Unknown generation parameter {unknown[0]!r}.", f"Known are: {known}.")
        given = {name: value for name, value in parameters.items() if value is not None}
        return replace(cls(), **{**defaults, **given})


def chat_defaults(network: Any) -> dict[str, Any]:
    """What is used where a request gives nothing: the checkpoint's generation_config.json, else the family's."""
    family = network.spec.chat_defaults
    own = {name: network.stored_defaults.get(name) for name in family if name != "max_length"}
    return {**family, **{name: value for name, value in own.items() if value is not None}}


def stored_settings(content: Mapping[str, Any]) -> dict[str, Any]:
    """Our parameters in a generation_config.json, others ignored; raises InvalidRequestError for one out of range."""
    named = {name: content[name] for name in CHAT_DEFAULTS if content.get(name) is not None}
    GenerationConfig(**named)
    return named


def library_settings(content: Mapping[str, Any]) -> dict[str, Any]:
    """What transformers may read of a generation_config.json; raises InvalidRequestError for a wrong value.

    The rest is left out: it names classes, files and code, or belongs to decoding methods that are not supported.
    """
    if mistake := first_mistake(content, LIBRARY_RULES):
        raise InvalidRequestError(f"{mistake}.")
    return {name: content[name] for name in LIBRARY_RULES if name in content} | stored_settings(content)


def _require_integer(name: str, value: Any, low: int, optional: bool = False) -> None:
    if optional and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise InvalidRequestError(f"{name} must be a whole number of at least {low}, not {reprlib.repr(value)}.")


def _require_number(name: str, value: Any, low: float, high: float, includes_low: bool = False) -> None:
    # Compared, not converted: JSON may hold whole numbers that no float can.
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and -LARGEST <= value <= LARGEST
    if not is_number or value > high or value < low or (value == low and not includes_low):
        upper = f" and at most {high:g}" if high < math.inf else ""
        raise InvalidRequestError(
            f"{name} must be {'at least' if includes_low else 'above'} {low:g}{upper}, not {reprlib.repr(value)}."
        )
