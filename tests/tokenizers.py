"""Tokenizers for tests: two trained here in a second, and the genuine ones where their files are at hand.

`small`: like the embedded demo model: BPE, no dummy prefix, identity normalisation, blanks up to 16.
`prefixed`: like the published vocabulary in small: unigram, dummy prefix, nmt_nfkc, blanks up to 80.
`genuine`, `early`: the published files of v1.1.0 and of the first release, from ../shared/tokenizers.
"""

from __future__ import annotations

import atexit
import functools
import io
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import settings

from chatglm.models.chatglm.pretrained_tokenizer import ChatGLMTokenizer

ROOT = Path(__file__).parents[1]
GENUINE_FILES = ROOT.parent / "shared" / "tokenizers"
GOLDEN = ROOT / "tests" / "golden"
CONTROL = ["[MASK]", "[gMASK]", "[sMASK]", "<unused_0>", "<sop>", "<eop>", "<ENC>", "<dBLOCK>"]
TRAINED, ALL = ("small", "prefixed"), ("small", "prefixed", "genuine", "early")
CORPUS = """你好，世界！今天天气很好，我们去公园吧。
晚上睡不着怎么办？可以听听音乐；也可以喝一杯牛奶。
[Round 0] 问：你是谁？答：我是人工智能助手，很高兴见到你。
The quick brown fox doesn't jump over the lazy dog. I'm sure they've seen it: it's fast, isn't it?
def add(a, b): return a + b # 1234567890 <html> [list] |pipe| {json: true}
一二三四五六七八九十，训练时间，清华大学，北京，上海。Hello, world! What's this? You're right; we'll see.
""".splitlines()

laws = settings(max_examples=60, deadline=None, derandomize=True, database=None)


def tokenizer(name: str) -> ChatGLMTokenizer:
    """The tokenizer of that name; skips the test where its file is not at hand."""
    return {"small": small_tokenizer, "prefixed": prefixed_tokenizer, "genuine": genuine_tokenizer}.get(
        name, early_tokenizer
    )()


@functools.cache
def small_tokenizer() -> ChatGLMTokenizer:
    path = _train(
        "small", 16, model_type="bpe", vocab_size=700, add_dummy_prefix=False, normalization_rule_name="identity"
    )
    return ChatGLMTokenizer(str(path), num_image_tokens=0)


@functools.cache
def prefixed_tokenizer() -> ChatGLMTokenizer:
    path = _train("prefixed", 80, model_type="unigram", vocab_size=750, normalization_rule_name="nmt_nfkc")
    return ChatGLMTokenizer(str(path), num_image_tokens=0)


@functools.cache
def genuine_tokenizer() -> ChatGLMTokenizer:
    return ChatGLMTokenizer(str(_genuine_file("chatglm-6b-v1.1.0")), num_image_tokens=0)


@functools.cache
def early_tokenizer() -> ChatGLMTokenizer:
    return ChatGLMTokenizer(str(_genuine_file("chatglm-6b-early")))


def golden_items(folder: str, case: str) -> list[dict[str, Any]]:
    """The items of a golden file of texts."""
    return json.loads((GOLDEN / folder / f"{case}.json").read_text(encoding="utf-8"))["items"]


def _genuine_file(name: str) -> Path:
    path = GENUINE_FILES / name / "ice_text.model"
    if not path.is_file():
        pytest.skip(f"The published vocabulary is not at hand ({path}); the same laws run on the trained ones.")
    return path


def _train(name: str, longest_blank: int, **options: Any) -> Path:
    content = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 3),
        model_writer=content,
        control_symbols=CONTROL,
        user_defined_symbols=["<n>", "<|tab|>", *(f"<|blank_{k}|>" for k in range(2, longest_blank + 1))],
        pad_id=3,
        pad_piece="<pad>",
        byte_fallback=True,
        split_digits=True,
        hard_vocab_limit=False,
        character_coverage=1.0,
        minloglevel=2,
        remove_extra_whitespaces=options.get("add_dummy_prefix", True),
        **options,
    )
    folder = Path(tempfile.mkdtemp(prefix=f"chatglm-{name}-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = folder / "ice_text.model"
    path.write_bytes(content.getvalue())
    return path
