"""The tokenizer's folders: published ones, saved ones, broken ones."""

from __future__ import annotations

import copy
import io
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from transformers import AutoTokenizer

import chatglm  # noqa: F401  (registers the Auto classes)
from chatglm.errors import DamagedFileError, MismatchError, MissingFileError, PointerFileError
from chatglm.models.chatglm.pretrained_tokenizer import ChatGLMTokenizer
from tests.tokenizers import tokenizer

V1_1_0 = {
    "name_or_path": "THUDM/chatglm-6b",
    "bos_token": "<sop>",
    "eos_token": "<eop>",
    "end_token": "</s>",
    "gmask_token": "[gMASK]",
    "mask_token": "[MASK]",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "remove_space": False,
    "do_lower_case": False,
    "tokenizer_class": "ChatGLMTokenizer",
    "num_image_tokens": 0,
    "auto_map": {"AutoTokenizer": ["tokenization_chatglm.ChatGLMTokenizer", None]},
}
FIRST_RELEASE = {key: value for key, value in V1_1_0.items() if key not in ("num_image_tokens", "end_token")} | {
    "eos_token": "</s>",
    "eop_token": "<eop>",
}


def write_folder(folder: Path, tokenizer_config: dict[str, Any], vocabulary: bytes | None) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config), encoding="utf-8")
    (folder / "config.json").write_text('{"model_type": "chatglm"}', encoding="utf-8")
    if vocabulary is not None:
        (folder / "ice_text.model").write_bytes(vocabulary)
    return folder


@pytest.mark.parametrize("flags", [{}, {"trust_remote_code": True}, {"use_fast": False}])
def test_auto_tokenizer_takes_ours_from_a_published_folder(tmp_path: Path, flags: dict[str, bool]) -> None:
    original = tokenizer("prefixed")
    folder = write_folder(tmp_path / "model", V1_1_0, Path(original.vocab_file).read_bytes())
    tok = AutoTokenizer.from_pretrained(folder, **flags)
    assert type(tok) is ChatGLMTokenizer
    text = "[gMASK] 你好</s> <eop>\n12"
    assert tok.encode(text) == original.encode(text)
    assert (tok.end_token, tok.gmask_token_id) == ("</s>", original.gmask_token_id)


@pytest.mark.parametrize("tokenizer_config", [V1_1_0, FIRST_RELEASE], ids=["v1.1.0", "first release"])
def test_save_and_load_round_trip(tmp_path: Path, tokenizer_config: dict[str, Any]) -> None:
    vocabulary = Path(tokenizer("prefixed").vocab_file).read_bytes()
    tok = ChatGLMTokenizer.from_pretrained(write_folder(tmp_path / "model", tokenizer_config, vocabulary))
    tok.add_tokens(["<|user|>"])
    tok.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert "auto_map" not in saved
    assert saved["num_image_tokens"] == tokenizer_config.get("num_image_tokens", 20000)
    again = ChatGLMTokenizer.from_pretrained(tmp_path / "saved")
    text = "a\n[MASK]\nb [gMASK]<|user|> c"
    assert again.encode(text, text) == tok.encode(text, text)
    assert again.decode(again.encode(text)) == tok.decode(tok.encode(text)) == "a b [gMASK]<|user|> c"
    assert again.get_vocab() == tok.get_vocab()
    assert len(again) == again.vocab_size + 1
    assert (again.eos_token, again.end_token, again.eop_token_id) == ("<eop>", "</s>", tok.eop_token_id)
    again.save_pretrained(tmp_path / "saved")  # onto itself


def test_copies_and_a_vocabulary_file_that_is_gone(tmp_path: Path) -> None:
    file = tmp_path / "ice_text.model"
    file.write_bytes(Path(tokenizer("small").vocab_file).read_bytes())
    tok = ChatGLMTokenizer(str(file), num_image_tokens=0)
    file.unlink()
    tok.save_pretrained(tmp_path / "saved")
    ids = tokenizer("small").encode("你好\n")
    saved = ChatGLMTokenizer.from_pretrained(tmp_path / "saved")
    for twin in (copy.deepcopy(tok), pickle.loads(pickle.dumps(tok)), saved):
        assert twin.encode("你好\n") == ids


@pytest.mark.parametrize(
    ("vocabulary", "error"),
    [
        (None, MissingFileError),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", PointerFileError),
        (b"", DamagedFileError),
        (b"<html>not found</html>", DamagedFileError),
    ],
    ids=["missing", "pointer", "empty", "not a model"],
)
def test_unusable_vocabulary_files(tmp_path: Path, vocabulary: bytes | None, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"ice_text\.model"):
        ChatGLMTokenizer.from_pretrained(write_folder(tmp_path / "model", V1_1_0, vocabulary))


def test_vocabulary_of_another_model(tmp_path: Path) -> None:
    content = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a b c"] * 9), model_writer=content, vocab_size=8, hard_vocab_limit=False, minloglevel=2
    )
    with pytest.raises(MismatchError, match="<n>"):
        ChatGLMTokenizer.from_pretrained(write_folder(tmp_path / "model", V1_1_0, content.getvalue()))
