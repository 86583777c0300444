"""Small tokenizers of ChatGLM2-6B and later families: their files, and the text tokenizers that read them."""

from __future__ import annotations

import base64
import functools
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers

from chatglm.models.chatglm2.tokenizer import ChatGLM2TextTokenizer
from chatglm.models.chatglm3.tokenizer import ChatGLM3TextTokenizer
from chatglm.models.codegeex2.tokenizer import CodeGeeX2TextTokenizer
from chatglm.models.glm4.tokenizer import SPECIAL_NAMES, GLM4TextTokenizer
from chatglm.models.glm4.vocabulary import SPLIT_PATTERN, token_bytes_of
from tests.tokenizers import CORPUS, GENUINE_FILES

TEXT_TOKENIZERS: dict[str, Any] = {
    "chatglm2": ChatGLM2TextTokenizer,
    "chatglm3": ChatGLM3TextTokenizer,
    "codegeex2": CodeGeeX2TextTokenizer,
    "glm4": GLM4TextTokenizer,
}
GENUINE_FOLDERS = {
    "chatglm2": "chatglm2-6b",
    "chatglm3": "chatglm3-6b",
    "codegeex2": "codegeex2-6b",
    "glm4": "glm-4-9b-chat",
}


@functools.cache
def sentencepiece_bytes(add_dummy_prefix: bool = True) -> bytes:
    """Like the published file in small: BPE, byte fallback, identity normalisation."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 3),
        model_writer=model,
        model_type="bpe",
        vocab_size=520,
        hard_vocab_limit=False,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        add_dummy_prefix=add_dummy_prefix,
        remove_extra_whitespaces=False,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


@functools.cache
def byte_pairs() -> tokenizers.Tokenizer:
    """Byte pairs learned with GLM-4's way of cutting words, as transformers' native folders hold them."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(ignore_merges=True))
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(SPLIT_PATTERN), behavior="isolated")
    to_bytes = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([split, to_bytes])
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    return tokenizer


def write_sentencepiece_tokenizer(folder: Path, name: str, add_dummy_prefix: bool = True) -> None:
    """The files of a ChatGLM2, ChatGLM3 or CodeGeeX2 folder, `name` in tokenizer_config.json as published."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(sentencepiece_bytes(add_dummy_prefix))
    settings = {
        "name_or_path": name,
        "remove_space": False,
        "do_lower_case": False,
        "tokenizer_class": "ChatGLMTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_chatglm.ChatGLMTokenizer", None]},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def write_chatglm2_tokenizer(folder: Path) -> None:
    write_sentencepiece_tokenizer(folder, "THUDM/chatglm2-6b")


def write_chatglm3_tokenizer(folder: Path) -> None:
    write_sentencepiece_tokenizer(folder, "THUDM/chatglm3-6b")


def write_codegeex2_tokenizer(folder: Path) -> None:
    write_sentencepiece_tokenizer(folder, "THUDM/codegeex2-6b", add_dummy_prefix=False)


def write_glm4_tokenizer(folder: Path) -> None:
    """The files of a GLM-4 folder as published: ranks, and special tokens in tokenizer_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    pairs = token_bytes_of(byte_pairs().get_vocab())
    lines = (f"{base64.b64encode(pair).decode()} {rank}\n" for rank, pair in enumerate(pairs))
    (folder / "tokenizer.model").write_text("".join(lines), encoding="ascii")
    settings = {
        "auto_map": {"AutoTokenizer": ["tokenization_chatglm.ChatGLM4Tokenizer", None]},
        "added_tokens_decoder": {str(token.pop("id")): token for token in _added_tokens(len(pairs))},
        "additional_special_tokens": list(SPECIAL_NAMES),
        "clean_up_tokenization_spaces": False,
        "do_lower_case": False,
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": 128000,
        "padding_side": "left",
        "remove_space": False,
        "tokenizer_class": "ChatGLM4Tokenizer",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def write_native_tokenizer(folder: Path) -> None:
    """The files of a GLM-4 folder in transformers' native layout: everything in tokenizer.json."""
    folder.mkdir(parents=True, exist_ok=True)
    content = json.loads(byte_pairs().to_str())
    content["added_tokens"] = _added_tokens(len(content["model"]["vocab"]))
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    settings = {
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "padding_side": "left",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


WRITERS: dict[str, Callable[[Path], None]] = {
    "chatglm2": write_chatglm2_tokenizer,
    "chatglm3": write_chatglm3_tokenizer,
    "codegeex2": write_codegeex2_tokenizer,
    "glm4": write_glm4_tokenizer,
    "native": write_native_tokenizer,
}


@functools.cache
def tiny_tokenizer(name: str) -> Any:
    """The text tokenizer of one of `WRITERS`; a tiny config.json takes sizes and special ids from it."""
    with tempfile.TemporaryDirectory() as folder:
        WRITERS[name](Path(folder))
        return TEXT_TOKENIZERS.get(name, GLM4TextTokenizer).from_folder(Path(folder))


def genuine_folder(name: str) -> Path:
    """The folder with the published tokenizer files of a family; skips the test where they are not at hand."""
    folder = GENUINE_FILES / GENUINE_FOLDERS[name]
    if not (folder / "tokenizer.model").is_file():
        pytest.skip(f"The published vocabulary is not at hand ({folder}); the same laws run on trained ones.")
    return folder


@functools.cache
def genuine_text_tokenizer(name: str) -> Any:
    """The text tokenizer of a family with its published vocabulary."""
    return TEXT_TOKENIZERS[name].from_folder(genuine_folder(name))


def _added_tokens(first_id: int) -> list[dict[str, Any]]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return [{"id": first_id + number, "content": name, **flags} for number, name in enumerate(SPECIAL_NAMES)]
