"""`encode_plain`: text that spells a token stays text; all other text is encoded as by `encode`."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatglm.models.chatglm.pretrained_tokenizer import ChatGLMTokenizer
from tests.tokenizers import ALL, laws, tokenizer

LITERALS = [
    *("[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<pad>", "<unk>", "<s>", "</s>", "<ENC>", "<dBLOCK>"),
    *("<n>", "<|tab|>", "<|blank_2|>", "<|blank_5|>", "<|blank_80|>", "<unused_0>", "<0x41>"),
]
SYMBOL = re.compile(r"<n>|<\|tab\|>|<\|blank_\d+\|>")
WHITE = ["\n", "\t", " ", "  ", "   ", " " * 17, " " * 81, "\r\n"]
ODD = ["\u200b", "\u0338", "\ue000", "é", "ﬁ", "👋", "好好好"]
words = st.sampled_from(["你好", "。", "hello", "12", "|", "_", ">", *ODD])
any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
# Without an opening bracket of any width nothing can spell a token.
harmless = st.lists(st.one_of(words, st.sampled_from(WHITE), any_text), max_size=10).map(
    lambda parts: re.sub(r"[<\[＜［﹤︿﹇]", "", "".join(parts))
)
spelled = st.sampled_from([*LITERALS, "<", "＜n＞", "＜｜tab｜＞", "<\x01n>"])
dangerous = st.lists(st.one_of(words, spelled, st.sampled_from(WHITE)), max_size=8).map("".join)
faithful = st.lists(st.sampled_from(["你好", "hi", "12", "\n", "\t", "  ", " " * 40, "👋"]), max_size=9).map("".join)


@pytest.mark.parametrize("name", ALL)
@laws
@given(text=harmless)
def test_plain_encoding_of_harmless_text_is_encoding(name: str, text: str) -> None:
    tok = tokenizer(name)
    assert tok.encode_plain(text) == tok.encode(text, add_special_tokens=False)


@pytest.mark.parametrize("name", ALL)
@laws
@given(text=dangerous)
def test_plain_encoding_never_yields_a_token_that_was_only_spelled(name: str, text: str) -> None:
    tok = tokenizer(name)
    ids = tok.encode_plain(text)
    assert not any(tok.pieces.processor.is_control(i - tok.num_image_tokens) for i in ids)
    typed = tok.pieces.preprocess(re.sub(r"[^\n\t ]", "x", text))
    assert [token for token in tok.convert_ids_to_tokens(ids) if SYMBOL.fullmatch(token)] == SYMBOL.findall(typed)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("literal", LITERALS)
def test_a_spelled_token_decodes_to_its_spelling(name: str, literal: str) -> None:
    tok = tokenizer(name)
    for text in (
        literal,
        f"甲{literal}乙",
        f"{literal}\n{literal}",
        f"a  {literal}  b",
        f"a {literal}\n b",
        literal * 3,
    ):
        assert tok.decode(tok.encode_plain(text), clean_up_tokenization_spaces=False) == text


def test_full_width_spelling_is_no_way_round() -> None:
    """Normalisation runs before SentencePiece looks for its symbols, so `＜n＞` became a newline."""
    tok = tokenizer("prefixed")
    newline = tok.convert_tokens_to_ids("<n>")
    assert newline in tok.encode("＜n＞")
    assert newline not in tok.encode_plain("＜n＞")
    assert tok.decode(tok.encode_plain("＜n＞")) == "<n>"


@pytest.mark.parametrize("name", ALL)
@laws
@given(text=faithful)
def test_decoding_gives_the_text_back(name: str, text: str) -> None:
    tok = tokenizer(name)
    assert tok.decode(tok.encode_plain(text), clean_up_tokenization_spaces=False) == text


def test_only_blank_runs_with_a_symbol_are_mapped() -> None:
    assert tokenizer("small").pieces.preprocess(" " * 33) == "<|blank_16|><|blank_16|> "
    assert tokenizer("prefixed").pieces.preprocess(" " * 81) == "<|blank_80|> "


def test_lower_case_and_space_options() -> None:
    tok = ChatGLMTokenizer(tokenizer("small").vocab_file, do_lower_case=True, remove_space=True, num_image_tokens=0)
    assert tok.encode_plain(" A \n B ") == tok.encode("a b", add_special_tokens=False)
