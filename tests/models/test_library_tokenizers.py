"""Tokenizers of ChatGLM2-6B and later for transformers: golden calls, padding, prompts, files."""

from __future__ import annotations

import copy
import json
import pickle
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatglm.errors import CheckpointError, InvalidRequestError, MissingFileError
from chatglm.messages import Message
from tests.family_tokenizers import WRITERS, genuine_folder, tiny_tokenizer
from tests.models.test_text_tokenizers import FAMILIES, SENTENCEPIECE, special_facts
from tests.tokenizers import GOLDEN, golden_items, laws

PREFIXES = {"chatglm2": "ChatGLM2", "chatglm3": "ChatGLM3", "codegeex2": "CodeGeeX2", "glm4": "GLM4", "native": "GLM4"}
CACHE: dict[str, Any] = {}


def tokenizer_class(name: str) -> Any:
    prefix = PREFIXES[name]
    return getattr(import_module(f"chatglm.models.{prefix.lower()}.pretrained_tokenizer"), f"{prefix}Tokenizer")


def genuine(name: str) -> Any:
    """The tokenizer of the published files."""
    if name not in CACHE:
        CACHE[name] = tokenizer_class(name).from_pretrained(genuine_folder(name))
    return CACHE[name]


def tiny(name: str, folder: Path) -> Any:
    WRITERS[name](folder)
    return tokenizer_class(name).from_pretrained(folder)


@pytest.mark.parametrize("name", FAMILIES)
def test_golden_strings(name: str) -> None:
    tok = genuine(name)
    for item in golden_items(f"tokenizer_{name}", "strings"):
        assert tok.encode(item["text"], add_special_tokens=False) == item["ids"], item["text"]
        assert tok.encode(item["text"]) == item["ids_with_special"]
        if "tokens" in item:
            assert tok.tokenize(item["text"]) == item["tokens"]
        assert tok.decode(item["ids"]) == item["decode_ids"]
        assert tok.decode(item["ids_with_special"]) == item["decode_with_special"]
        assert tok.decode(item["ids_with_special"], skip_special_tokens=True) == item["decode_skip_special"]


def test_role_names_may_be_asked_for() -> None:
    tok = tokenizer_class("chatglm3").from_pretrained(genuine_folder("chatglm3"), encode_special_tokens=True)
    for item in golden_items("tokenizer_chatglm3", "strings"):
        expected = item.get("ids_encode_special_tokens", item["ids"])
        assert tok.encode(item["text"], add_special_tokens=False) == expected


@pytest.mark.parametrize("name", FAMILIES)
def test_golden_batches(name: str) -> None:
    tok = genuine(name)
    calls: dict[str, dict[str, Any]] = {
        "padding_true": {"padding": True},
        "padding_max12": {"padding": "max_length", "max_length": 12},
        "multiple_of_4": {"padding": True, "pad_to_multiple_of": 4},
        "no_padding": {},
    }
    for item in golden_items(f"tokenizer_{name}", "batches"):
        for call, arguments in calls.items():
            assert dict(tok(item["texts"], **arguments)) == item[call]


@pytest.mark.parametrize("name", SENTENCEPIECE)
def test_golden_pairs(name: str) -> None:
    tok = genuine(name)
    for item in golden_items(f"tokenizer_{name}", "pairs"):
        assert tok.encode(item["a"], item["b"]) == item["ids"]
        padded = tok(item["a"], item["b"], padding="max_length", max_length=16, truncation=True)
        assert dict(padded) == item["padded"]


def test_codegeex2_pads_on_the_right_too(tmp_path: Path) -> None:
    golden = json.loads((GOLDEN / "tokenizer_codegeex2" / "right_padding.json").read_text(encoding="utf-8"))
    got = genuine("codegeex2")(golden["texts"], padding=True, padding_side="right")
    assert dict(got) == {key: golden[key] for key in got}
    with pytest.raises(InvalidRequestError, match="left"):
        tiny("chatglm3", tmp_path)(["a", "a b c"], padding=True, padding_side="right")


@pytest.mark.parametrize("name", ["chatglm3", "codegeex2", "glm4"])
def test_golden_special_ids(name: str) -> None:
    tok, facts = genuine(name), special_facts(name)
    assert (tok.vocab_size, tok.pad_token_id, tok.eos_token_id) == (
        facts["vocab_size"],
        facts["pad_token_id"],
        facts["eos_token_id"],
    )
    assert len(tok) == facts.get("len", facts["vocab_size"])
    for token in ("unk_token", "pad_token", "eos_token"):
        assert token not in facts or getattr(tok, token) == facts[token]
    for token, i in facts["ids"].items():
        if token not in ("<bos>", "<eos>", "<pad>"):
            assert tok.get_command(token) == tok.convert_tokens_to_ids(token) == i
    for i, text in {**facts.get("ids_beyond_the_vocabulary", {}), **facts.get("decode_beyond", {})}.items():
        assert tok.decode([int(i)]) == text


@pytest.mark.parametrize("name", ["chatglm3", "glm4"])
def test_golden_single_messages(name: str) -> None:
    tok = genuine(name)
    for item in golden_items(f"tokenizer_{name}", "single_messages"):
        parts = (item["role"], item["metadata"], item["message"])
        assert tok.build_single_message(*parts) == item["ids"]
        if "as_text" in item:
            assert tok.build_single_message(*parts, tokenize=False) == item["as_text"]
    with pytest.raises(InvalidRequestError, match="role"):
        tok.build_single_message("root", "", "x")


def test_golden_chat_inputs_of_chatglm3() -> None:
    tok = genuine("chatglm3")
    for item in golden_items("tokenizer_chatglm3", "chat_inputs"):
        got = tok.build_chat_input(item["query"], history=item["history"], role=item["role"])
        assert {key: value.tolist() for key, value in got.items()} == {key: item[key] for key in got}
        messages = [*(item["history"] or []), {"role": item["role"], "content": item["query"]}]
        assert tok.apply_chat_template(messages, add_generation_prompt=True, return_dict=False) == item["input_ids"][0]


def test_golden_chat_templates_of_glm4() -> None:
    tok = genuine("glm4")
    for item in golden_items("tokenizer_glm4", "chat_inputs"):
        messages = item["messages"]
        assert tok.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == item["text"]
        assert tok.apply_chat_template(messages, tokenize=False) == item["text_no_generation_prompt"]
        if not any("<|" in one["content"] for one in messages):
            got = tok.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
            length = len(item["input_ids"])
            assert {key: value.tolist() for key, value in got.items()} == {
                "input_ids": [item["input_ids"]],
                "attention_mask": [[1] * length],
                "position_ids": [list(range(length))],
            }


@pytest.mark.parametrize("name", ["chatglm2", "codegeex2"])
def test_golden_prompts_of_rounds(name: str) -> None:
    tok = genuine(name)
    for item in golden_items(f"tokenizer_{name}", "chat_prompts"):
        prompt = tok.build_prompt(item["query"], item["history"])
        assert prompt == item["prompt"]
        ids = item["input_ids"]
        assert tok.encode(prompt) == (ids[0] if isinstance(ids[0], list) else ids)


def test_chat_template_with_tools_batches_and_one_of_your_own(tmp_path: Path) -> None:
    tok = tiny("glm4", tmp_path)
    tool = {"type": "function", "function": {"name": "get"}}
    user = {"role": "user", "content": "q"}
    with_tools = tok.apply_chat_template([user], tools=[tool], tokenize=False)
    assert with_tools == tok.apply_chat_template(
        [{"role": "system", "content": "", "tools": [tool]}, user], tokenize=False
    )
    batch = tok.apply_chat_template([[user], [user, user]], padding=True, return_dict=False)
    assert [len(row) for row in batch] == [len(batch[1])] * 2
    assert tok.apply_chat_template([user], chat_template="{{ messages[0]['content'] }}!", tokenize=False) == "q!"
    with pytest.raises(InvalidRequestError, match="add_generation_prompt"):
        tiny("chatglm2", tmp_path / "two").apply_chat_template([user])


@pytest.mark.parametrize("entry", ["text", {"content": "a"}, {"role": "root", "content": "a"}, {"role": "user"}])
def test_messages_of_no_known_form(entry: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError):
        tiny("chatglm3", tmp_path).apply_chat_template([entry])


@pytest.mark.parametrize("name", WRITERS)
@laws
@given(data=st.data())
def test_typed_names_never_become_special_tokens_in_prompts(name: str, data: st.DataObject) -> None:
    if name not in CACHE.setdefault("tiny", {}):
        with tempfile.TemporaryDirectory() as folder:
            CACHE["tiny"][name] = tiny(name, Path(folder))
    tok, plain = CACHE["tiny"][name], tiny_tokenizer(name)
    text = data.draw(st.lists(st.sampled_from(list(plain.special_ids)) | st.text(max_size=3)).map("".join)) + "x"
    ids = tok.encode_messages([Message("user", text)], add_generation_prompt=True)
    first_special = min(plain.special_ids.values())
    assert sum(i >= first_special for i in ids) == (2 if name in ("chatglm2", "codegeex2") else 4)


@pytest.mark.parametrize("name", WRITERS)
def test_save_and_load_round_trip(name: str, tmp_path: Path) -> None:
    tok = tiny(name, tmp_path / "model")
    tok.add_tokens(["<|mine|>"])
    tok.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert "auto_map" not in saved
    assert saved["tokenizer_class"] == f"{PREFIXES[name]}Tokenizer"
    again = tokenizer_class(name).from_pretrained(tmp_path / "saved")
    text = "a\n你好 <|user|>[gMASK] <|mine|></s><|mine|> c</s>"
    assert again.encode(text) == tok.encode(text)
    assert again.get_vocab() == tok.get_vocab()
    assert again.decode(again.encode(text)) == tok.decode(tok.encode(text))
    again.save_pretrained(tmp_path / "saved")  # onto itself


@pytest.mark.parametrize("name", WRITERS)
def test_copies_and_a_vocabulary_file_that_is_gone(name: str, tmp_path: Path) -> None:
    tok = tiny(name, tmp_path / "model")
    Path(tok.plain.vocab_file).unlink()
    tok.save_pretrained(tmp_path / "saved")
    saved = tokenizer_class(name).from_pretrained(tmp_path / "saved")
    for twin in (copy.deepcopy(tok), pickle.loads(pickle.dumps(tok)), saved):
        assert twin.encode("你好\n") == tok.encode("你好\n")


def test_settings_that_list_role_names_do_not_make_them_special(tmp_path: Path) -> None:
    WRITERS["chatglm3"](tmp_path)
    plain = tiny_tokenizer("chatglm3")
    names = ("[gMASK]", "sop", "<|user|>")
    path = tmp_path / "tokenizer_config.json"
    added = {str(plain.special_id(name)): {"content": name, "special": True} for name in names}
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings |= {"added_tokens_decoder": added, "additional_special_tokens": list(names), "pad_token": "</s>"}
    path.write_text(json.dumps(settings), encoding="utf-8")
    tok = tokenizer_class("chatglm3").from_pretrained(tmp_path)
    assert tok.encode("philosophy <|user|>", add_special_tokens=False) == plain.encode_plain("philosophy <|user|>")
    assert (tok.pad_token, tok.pad_token_id) == ("<unk>", 0)


@pytest.mark.parametrize("name", WRITERS)
def test_unusable_folders(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text('{"added_tokens_decoder": 5, "padding_side": "top"}', encoding="utf-8")
    with pytest.raises(CheckpointError):
        tokenizer_class(name).from_pretrained(tmp_path)
    path.write_text("{}", encoding="utf-8")
    for file in ("tokenizer.model", "tokenizer.json"):
        (tmp_path / file).unlink(missing_ok=True)
    with pytest.raises(MissingFileError, match=r"tokenizer\.model"):
        tokenizer_class(name).from_pretrained(tmp_path)
