"""The law of the detokenizer: joined deltas = the cleaned whole, for every id sequence, in linear time."""

from __future__ import annotations

import functools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatglm.generation.detokenizer import IncrementalDetokenizer, LeadingSpaces, SurfaceDecoder
from chatglm.models.chatglm.weights import answer_stages
from tests.generation.whole_answers import clean_up
from tests.tokenizers import ALL, TRAINED, golden_items, laws, tokenizer

TEXTS = [
    "你好👋!我是人工智能助手,很高兴见到你.",
    "𠮷野家 👨‍👩‍👧‍👦 🇨🇳 繁體",
    "  [[训练时间]],真的吗?是的:3:45;a,b ",
    "I 'm sure , it 's fine . isn 't it ? ' x ' do n't !",
    "def f(a):\n\treturn  a\n\n\n",
    "什么??哈!!哈",
    "",
]


@functools.cache
def ids_of_bytes(name: str) -> list[int]:
    """The 256 byte tokens, by value."""
    tok = tokenizer(name)
    return [tok.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in range(256)]


@st.composite
def token_ids(draw: st.DrawFn, name: str) -> list[int]:
    """Ids of real text mixed with ids from the whole vocabulary, bytes and beyond."""
    tok = tokenizer(name)
    first, last = tok.num_image_tokens, tok.vocab_size
    byte_ids = ids_of_bytes(name)
    marks = [tok.convert_tokens_to_ids(piece) for piece in ("▁", ",", "?", ".", "'", "<n>", "<sop>", "<unk>", "<pad>")]
    # Whole characters in bytes, so that complete, broken and interleaved ones all occur.
    emoji = [byte_ids[byte] for byte in draw(st.sampled_from(["👋", "㐀", "é", "\ufffd", "▁"])).encode()]
    one = st.one_of(
        st.integers(first, last - 1),
        st.sampled_from(byte_ids),
        st.sampled_from(marks),
        st.sampled_from([-100, last, last + 500]),
    )
    part = st.one_of(
        st.lists(one, max_size=6),
        st.just(emoji),
        st.sampled_from(TEXTS).map(lambda text: tok.encode(text, add_special_tokens=False)),
    )
    return [i for ids in draw(st.lists(part, max_size=6)) for i in ids]


def deltas_of(detokenizer: IncrementalDetokenizer, ids: list[int]) -> list[str]:
    """Push everything, checking that `text` only grows by what was given out."""
    deltas: list[str] = []
    for step in (*(lambda i=i: detokenizer.push(i) for i in ids), detokenizer.finish):
        deltas.append(step())
        assert detokenizer.text == "".join(deltas)
    return deltas


@pytest.mark.parametrize("name", ALL)
@laws
@given(data=st.data())
def test_chat_07_joined_deltas_equal_the_cleaned_whole(name: str, data: st.DataObject) -> None:
    tok = tokenizer(name)
    ids = data.draw(token_ids(name))
    assert "".join(deltas_of(IncrementalDetokenizer(tok, clean_up=answer_stages()), ids)) == clean_up(tok.decode(ids))
    assert "".join(deltas_of(IncrementalDetokenizer(tok), ids)) == tok.decode(ids)


@pytest.mark.parametrize("name", ALL)
@laws
@given(data=st.data())
def test_text_ends_before_the_first_stop_string(name: str, data: st.DataObject) -> None:
    tok = tokenizer(name)
    ids = data.draw(token_ids(name))
    whole = clean_up(tok.decode(ids))
    # Cuts of the answer itself, so that stop strings span tokens, bytes and widened marks.
    places = data.draw(st.lists(st.tuples(st.integers(0, len(whole)), st.integers(1, 5)), max_size=3))
    stops = [stop for start, length in places if (stop := whole[start : start + length])] + ["never there"]
    cut = min((whole.find(stop) for stop in stops if stop in whole), default=None)
    detokenizer = IncrementalDetokenizer(tok, clean_up=answer_stages(), stop_strings=stops)
    assert "".join(deltas_of(detokenizer, ids)) == whole[:cut]
    assert detokenizer.stopped == (cut is not None)


@pytest.mark.parametrize("name", ALL)
@laws
@given(data=st.data())
def test_whole_decoding_equals_sentencepiece(name: str, data: st.DataObject) -> None:
    """Two ways to the same text: our joined surfaces, and SentencePiece's own decoding of all ids at once."""
    tok = tokenizer(name)
    kept = [i for i in data.draw(token_ids(name)) if tok.surface(i) is not None]
    symbols = {"<n>": "\n", "<|tab|>": "\t", **{f"<|blank_{k}|>": " " * k for k in range(2, 81)}}
    text = tok.pieces.processor.decode_ids([i - tok.num_image_tokens for i in kept])
    for symbol, white_space in symbols.items():
        text = text.replace(symbol, white_space)
    assert tok.decode(kept, clean_up_tokenization_spaces=False) == text


@pytest.mark.parametrize(
    ("ids_key", "folder", "case"),
    [("reply_ids", "tokenizer_chatglm_v1", "chat_prompts"), ("new_ids", "chat_e2e_v1", "chat_e2e")],
)
def test_chat_07_golden_answers_stream_to_the_same_text(ids_key: str, folder: str, case: str) -> None:
    tok = tokenizer("genuine")
    for item in golden_items(folder, case):
        assert clean_up(tok.decode(item[ids_key])) == item["response"]
        assert (
            "".join(deltas_of(IncrementalDetokenizer(tok, clean_up=answer_stages()), item[ids_key])) == item["response"]
        )


@pytest.mark.parametrize("name", TRAINED)
def test_a_character_of_several_bytes_comes_out_once_and_whole(name: str) -> None:
    """Upstream showed U+FFFD until a character was complete (#478, #896), and slicing its text broke the stream."""
    tok = tokenizer(name)
    ids = tok.encode("好👋好", add_special_tokens=False)
    deltas = deltas_of(IncrementalDetokenizer(tok, clean_up=answer_stages()), ids)
    assert "".join(deltas) == "好👋好"
    assert any("👋" in delta for delta in deltas)
    assert not any("\ufffd" in delta for delta in deltas)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"\xf0\x9f\x91\x8b", "👋"),
        (b"\xe4\xb8A", "\ufffd\ufffdA"),
        (b"\xe4\xe4\xb8\xad", "\ufffd中"),
        (b"\xed\xa0\x80", "\ufffd" * 3),
        (b"\xc0\x80\xff", "\ufffd" * 3),
        (b"\xf0\x9f\x91", "\ufffd" * 3),
    ],
)
def test_broken_bytes_give_one_replacement_each(content: bytes, text: str) -> None:
    decoder = SurfaceDecoder("keep")
    assert "".join(decoder.push(bytes([byte])) for byte in content) + decoder.finish() == text


def test_punctuation_waits_for_its_right_neighbour_and_no_longer() -> None:
    tok = tokenizer("small")
    comma, han, latin = (tok.encode(text, add_special_tokens=False) for text in (",", "中", "b"))
    detokenizer = IncrementalDetokenizer(tok, clean_up=answer_stages())
    assert [detokenizer.push(i) for i in [*latin, *comma]] == ["b", ""]
    assert "".join(map(detokenizer.push, latin)) == ",b"
    assert "".join(map(detokenizer.push, comma)) == ""
    assert "".join(map(detokenizer.push, han)) == "，中"
    assert "".join(map(detokenizer.push, comma)) == "，"
    assert (detokenizer.finish(), detokenizer.finish()) == ("", "")


class CountingTokenizer:
    """Says "好 ", a comma, or half a character; counts how often it is asked."""

    clean_up_tokenization_spaces = True
    leading_spaces: LeadingSpaces = "drop all"

    def __init__(self) -> None:
        self.asked = 0

    def surface(self, token_id: int) -> str | bytes | None:
        self.asked += 1
        return ["好▁", ",", b"\xe4", "", None, "▁", "\n", "ab"][token_id % 8]


@pytest.mark.parametrize("cycle", [range(8), [1], [2], [3, 4], [5], [6], [7]])
def test_ten_thousand_tokens_cost_one_look_each(cycle: list[int]) -> None:
    """Upstream decoded the whole answer again at every token: quadratic, seconds per token at the end of long ones."""
    tok = CountingTokenizer()
    detokenizer = IncrementalDetokenizer(tok, clean_up=answer_stages(), stop_strings=["abab!", "ba?"])
    ids = [*cycle] * (10_000 // len(cycle))
    given_out = sum(len(detokenizer.push(i)) for i in ids)
    rest = detokenizer.finish()
    assert tok.asked == len(ids)
    assert len(rest) <= 8
    assert len(detokenizer.text) == given_out + len(rest)


def test_ids_after_a_stop_add_nothing() -> None:
    tok = tokenizer("small")
    detokenizer = IncrementalDetokenizer(tok, clean_up=answer_stages(), stop_strings=["fox"])
    ids = tok.encode("The quick brown fox doesn't jump over the fox", add_special_tokens=False)
    assert "".join(map(detokenizer.push, ids)) == "The quick brown "
    assert detokenizer.stopped
    assert detokenizer.finish() == ""
