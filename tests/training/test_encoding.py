"""Rows as ids: upstream's layout, the renderer of chat, and what is left out when a row is too long."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chatglm.messages import to_messages
from chatglm.model_spec import ModelSpec
from chatglm.models.chatglm.template import encode_chat, render
from chatglm.training.encoding import (
    IGNORED,
    Encoder,
    Examples,
    Lengths,
    RightPadding,
    cut_warning,
    left_padded,
)
from chatglm.training.records import Record
from tests.scripted import tiny_spec
from tests.tokenizers import laws, small_tokenizer


def spec_of(tokenizer: Any, learned_prompt_tokens: int = 1) -> ModelSpec:
    eos_ids = (tokenizer.eos_token_id,)
    return tiny_spec(tokenizer.vocab_size, 1000, eos_ids, learned_prompt_tokens=learned_prompt_tokens)


WORDS = st.text("你好，天气很公园hello world.\n", min_size=1, max_size=40)
ROUNDS = st.lists(st.tuples(WORDS, WORDS), max_size=4)


def _encoder(source: int = 200, target: int = 60, prefix: str = "") -> Encoder:
    tokenizer = small_tokenizer()
    return Encoder(encode_chat, tokenizer, Lengths(source, target), prefix, spec=spec_of(tokenizer))


@pytest.mark.parametrize("learned", [0, 1])
def test_the_family_says_how_much_of_the_prompt_is_learned(learned: int) -> None:
    tokenizer = small_tokenizer()
    encode = Encoder(encode_chat, tokenizer, Lengths(200, 60), spec=spec_of(tokenizer, learned))
    example = encode(Record("你好", "hello"))
    labels = Examples([example])[0]["labels"]
    assert (
        labels[len(example.prompt_ids) - learned :]
        == [*example.prompt_ids, *example.response_ids][-len(example.response_ids) - learned :]
    )
    assert set(labels[: len(example.prompt_ids) - learned]) == {IGNORED}
    assert learned or Encoder(encode_chat, tokenizer, Lengths(200, 60))(Record("你好", "hello")) == example


def test_the_layout_of_a_row() -> None:
    tokenizer = small_tokenizer()
    row = Examples([_encoder()(Record("你好", "天气很好"))])[0]
    asked, answered = tokenizer.encode_plain("你好"), tokenizer.encode_plain("天气很好")
    gmask, sop, eop = tokenizer.gmask_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id
    assert row["input_ids"] == [*asked, gmask, sop, *answered, eop]
    # `<sop>` is the first learned token: the network's shifted loss predicts it at [gMASK].
    assert row["labels"] == [IGNORED] * (len(asked) + 1) + [sop, *answered, eop]


@laws
@given(prompt=WORDS, response=WORDS, history=ROUNDS)
def test_prompts_are_those_of_chat(prompt: str, response: str, history: list[tuple[str, str]]) -> None:
    tokenizer = small_tokenizer()
    example = _encoder(source=2000)(Record(prompt, response, history))
    text = tokenizer.encode_plain(render(to_messages(prompt, history)))
    assert example.prompt_ids == tokenizer.build_inputs_with_special_tokens(text)


@laws
@given(prompt=WORDS, response=WORDS, history=ROUNDS, source=st.integers(1, 60), target=st.integers(2, 40))
def test_no_row_is_longer_than_asked(
    prompt: str, response: str, history: list[tuple[str, str]], source: int, target: int
) -> None:
    tokenizer = small_tokenizer()
    example = _encoder(source, target)(Record(prompt, response, history))
    assert len(example.prompt_ids) <= source + 1
    assert len(example.response_ids) <= target - 1
    assert example.prompt_ids[-2:] == [tokenizer.gmask_token_id, tokenizer.bos_token_id]
    assert example.response_ids[-1] == tokenizer.eos_token_id
    # Only whole rounds are dropped as long as the question fits: it is there to its last character.
    if not example.is_prompt_cut:
        kept = history[example.dropped_rounds :]
        assert example.prompt_ids[:-2] == tokenizer.encode_plain(render(to_messages(prompt, kept)))
    else:
        assert example.prompt_ids[:-2] == tokenizer.encode_plain(prompt)[: source - 1]


def test_too_long_rows_are_counted() -> None:
    encoder = _encoder(40, 8)
    rows = [
        Record("你好", "hello", [("天气" * 30, "很好"), ("a", "b")]),
        Record("天气很好，" * 30, "hello"),
        Record("你好", "天气很好，" * 30),
        Record("你好", "你好"),
    ]
    examples = [encoder(row) for row in rows]
    words = "Of 4 rows 1 lost their oldest rounds, 1 have a cut question, 1 have a cut answer"
    assert words in cut_warning(examples)
    assert cut_warning(examples[3:]) == ""


def test_the_source_prefix_stands_before_the_question() -> None:
    plain, prefixed = _encoder(), _encoder(prefix="世界，")
    assert prefixed(Record("你好", "a")) == plain(Record("世界，你好", "a"))


def test_special_tokens_in_the_data_stay_text() -> None:
    tokenizer = small_tokenizer()
    row = Examples([_encoder()(Record("[gMASK]<sop>", "<eop>hello"))])[0]
    specials = (tokenizer.gmask_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert [i for i in row["input_ids"] if i in specials] == list(specials)


@pytest.mark.parametrize("length", [None, 50])
@pytest.mark.parametrize("is_pad_learned", [False, True])
def test_training_batches_are_padded_on_the_right(length: int | None, is_pad_learned: bool) -> None:
    tokenizer = small_tokenizer()
    rows = [Examples([_encoder()(Record(text, "hello"))])[0] for text in ("你好", "今天天气很好，我们去公园吧。")]
    batch = RightPadding(tokenizer.pad_token_id, is_pad_learned, length)(rows)
    width = length or max(len(row["input_ids"]) for row in rows)
    filler = tokenizer.pad_token_id if is_pad_learned else IGNORED
    for number, row in enumerate(rows):
        spare = width - len(row["input_ids"])
        assert batch["input_ids"][number].tolist() == row["input_ids"] + [tokenizer.pad_token_id] * spare
        assert batch["labels"][number].tolist() == row["labels"] + [filler] * spare


def test_prompts_for_generation_are_padded_on_the_left() -> None:
    ids, mask = left_padded([[5, 6], [7, 8, 9]], 3)
    assert torch.equal(ids, torch.tensor([[3, 5, 6], [7, 8, 9]]))
    assert torch.equal(mask, torch.tensor([[0, 1, 1], [1, 1, 1]]))


def test_what_stands_between_prompt_and_answer_is_learned_with_it() -> None:
    tokenizer = small_tokenizer()
    spec = replace(spec_of(tokenizer), answer_prefix="\n")
    example = Encoder(encode_chat, tokenizer, Lengths(20, 20), spec=spec)(Record("q", "a"))
    answer = [*tokenizer.encode_plain("\n"), *tokenizer.encode_plain("a")]
    assert example.response_ids == [*answer, spec.eos_ids[0]]
