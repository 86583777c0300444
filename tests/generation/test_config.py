"""Generation parameters: ranges, names, defaults."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatglm.errors import InvalidRequestError
from chatglm.generation.config import GenerationConfig


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_length", 0), ("max_length", 2.5), ("max_length", True), ("max_new_tokens", 0), ("top_k", -1),
        ("top_p", 1.01), ("top_p", -0.1), ("top_p", float("nan")), ("temperature", -1), ("temperature", float("inf")),
        ("temperature", "hot"), ("temperature", 10**400), ("do_sample", "yes"), ("eos_token_id", 2**63),
        ("repetition_penalty", 0), ("seed", -1), ("stop", ("",)), ("min_new_tokens", -1),
        ("stop", 5), ("stop", {"x": 1}), ("stop", [["x"]]), ("do_sample", 1), ("top_k", "5"),
    ],
)  # fmt: skip
def test_values_out_of_range_are_named(name: str, value: object) -> None:
    with pytest.raises(InvalidRequestError, match=name):
        GenerationConfig.of({}, **{name: value})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.sampled_from([10**400, -0.0]),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=3), values, max_size=3),
    max_leaves=4,
)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(GenerationConfig.names())), JSON, max_size=4))
def test_any_json_is_used_or_refused(given_settings: dict[str, Any]) -> None:
    try:
        config = GenerationConfig.of({}, **given_settings)
    except InvalidRequestError:
        return
    asked = {name: value for name, value in given_settings.items() if value is not None}
    stop = asked.pop("stop", ())
    assert config.stop == ((stop,) if isinstance(stop, str) else tuple(stop))
    assert {name: getattr(config, name) for name in asked} == asked
    assert isinstance(config.do_sample, bool)


def test_unknown_parameter_lists_the_known_ones() -> None:
    with pytest.raises(InvalidRequestError, match=r"temprature.*temperature"):
        GenerationConfig.of({}, temprature=1)


def test_large_whole_numbers_are_numbers() -> None:
    config = GenerationConfig(temperature=2**63, repetition_penalty=2**64, top_k=2**70)
    assert (type(config.temperature), config.repetition_penalty) == (float, 2.0**64)


def test_none_means_not_given() -> None:
    config = GenerationConfig.of({"top_p": 0.3}, top_p=None, temperature=0.5, stop="x")
    assert (config.top_p, config.temperature, config.stop) == (0.3, 0.5, ("x",))
