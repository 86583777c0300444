"""Cleaning of answers: the golden cases, and every stage streamed = the same stage whole."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatglm.errors import InvalidRequestError
from chatglm.generation.stopping import StopFinder
from chatglm.generation.text import (
    SPACE_RULES,
    TRAINING_TIME,
    Replacer,
    Stripper,
    Widener,
    clean_up_spaces,
    start_of_tail,
    whole_characters,
)
from chatglm.model_spec import TextStage
from tests.generation.whole_answers import clean_up
from tests.tokenizers import golden_items, laws

tricky = st.text(alphabet="中文a ,!:;?.'ntmsver[]训练时间\n\t\u3000\u200b，", max_size=30)
pieces = st.lists(st.one_of(tricky, st.sampled_from([TRAINING_TIME[0], "[[训练", " ' ", " n't", "", " "])), max_size=8)


def streamed(stage: TextStage, parts: list[str]) -> str:
    return "".join([*map(stage.push, parts), stage.finish()])


@pytest.mark.parametrize("item", golden_items("tokenizer_chatglm_v1", "process_response"), ids=lambda item: item["in"])
def test_chat_07_clean_up_equals_golden(item: dict[str, str]) -> None:
    assert clean_up(item["in"]) == item["out"]


@laws
@given(parts=pieces)
def test_streamed_replacement_equals_whole(parts: list[str]) -> None:
    whole = "".join(parts)
    for rule in (*SPACE_RULES, TRAINING_TIME, ("aa", "b"), ("aab", "")):
        assert streamed(Replacer(*rule), parts) == whole.replace(*rule)


@laws
@given(parts=pieces)
def test_streamed_strip_and_widening_equal_whole(parts: list[str]) -> None:
    whole = "".join(parts)
    assert streamed(Stripper(), parts) == whole.strip()
    # `clean_up` of a text that needs no stripping and has no placeholder is the widening alone.
    if TRAINING_TIME[0] not in whole:
        assert streamed(Widener(), ["a", *parts, "b"]) == clean_up(f"a{whole}b")


@laws
@given(parts=pieces)
def test_chat_07_streamed_clean_up_equals_whole(parts: list[str]) -> None:
    whole = clean_up(clean_up_spaces("".join(parts)))
    stages: list[TextStage] = [
        *(Replacer(*rule) for rule in SPACE_RULES),
        Stripper(),
        Replacer(*TRAINING_TIME),
        Widener(),
    ]
    for stage in stages:
        parts = [*map(stage.push, parts), stage.finish()]
    assert "".join(parts) == whole


@laws
@given(
    parts=st.lists(st.text(alphabet="abc", max_size=5), max_size=8),
    stops=st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=4),
)
def test_text_ends_before_the_stop_string_that_begins_first(parts: list[str], stops: list[str]) -> None:
    finder = StopFinder(stops)
    whole = "".join(parts)
    cut = min((whole.find(stop) for stop in stops if stop in whole), default=None)
    assert streamed(finder, parts) == whole[:cut]
    assert finder.stopped == (cut is not None)
    assert finder.push("more") == ("" if finder.stopped else "more")


def test_stop_is_known_as_soon_as_it_is_certain() -> None:
    finder = StopFinder(["###"])
    assert [finder.push(part) for part in ("a#", "##b", "c")] == ["a", "", ""]
    assert finder.stopped


def test_empty_stop_string_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="empty"):
        StopFinder(["a", ""])


def test_start_of_tail() -> None:
    assert start_of_tail("xab", ["abc"]) == 1
    assert start_of_tail("abc", ["abc"]) == 3
    assert start_of_tail("", ["abc"]) == 0


@pytest.mark.parametrize(
    ("given_", "whole"),
    [("你好\ud83d\udc4b", "你好👋"), ("bytes \udcff", "bytes \ufffd"), ("\udc4b\ud83d", "\ufffd\ufffd")],
)
def test_halves_of_characters(given_: str, whole: str) -> None:
    assert whole_characters(given_) == whole
