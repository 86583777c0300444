"""Generation parameters: ranges, names, defaults."""

from __future__ import annotations

import pytest

from chatglm.errors import InvalidRequestError
from chatglm.generation.config import GenerationConfig


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_length", 0), ("max_length", 2.5), ("max_length", True), ("max_new_tokens", 0), ("top_k", -1),
        ("top_p", 1.01), ("top_p", -0.1), ("top_p", float("nan")), ("temperature", -1), ("temperature", float("inf")),
        ("temperature", "hot"), ("temperature", 10**400), ("do_sample", "yes"), ("eos_token_id", 2**63),
        ("repetition_penalty", 0), ("seed", -1), ("stop", ("",)), ("min_new_tokens", -1),
    ],
)  # fmt: skip
def test_values_out_of_range_are_named(name: str, value: object) -> None:
    with pytest.raises(InvalidRequestError, match=name):
        GenerationConfig.of({}, **{name: value})


def test_unknown_parameter_lists_the_known_ones() -> None:
    with pytest.raises(InvalidRequestError, match=r"temprature.*temperature"):
        GenerationConfig.of({}, temprature=1)


def test_large_whole_numbers_are_numbers() -> None:
    config = GenerationConfig(temperature=2**63, repetition_penalty=2**64, top_k=2**70)
    assert (type(config.temperature), config.repetition_penalty) == (float, 2.0**64)


def test_none_means_not_given() -> None:
    config = GenerationConfig.of({"top_p": 0.3}, top_p=None, temperature=0.5, stop="x")
    assert (config.top_p, config.temperature, config.stop) == (0.3, 0.5, ("x",))
