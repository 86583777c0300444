"""Chat templates of ChatGLM2-6B and later: golden prompts, dropping of old rounds, tools, nothing injected."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatglm.errors import InvalidRequestError, PromptTooLongError
from chatglm.messages import Message, check_history, to_messages
from chatglm.models.codegeex2.languages import LANGUAGE_TAGS, code_prompt, language_tag
from chatglm.models.encoded_prompt import EncodedPrompt
from chatglm.models.role_turns import round_numbers
from tests.family_tokenizers import GENUINE_FOLDERS, genuine_text_tokenizer, tiny_tokenizer
from tests.tokenizers import GOLDEN, golden_items, laws

FAMILIES = tuple(GENUINE_FOLDERS)
WITH_ROLES = ("chatglm3", "glm4")
text = st.text(alphabet="你好,。 \n\tab1?👋", max_size=12)


def template(name: str) -> Callable[[Any, Sequence[Message], int], EncodedPrompt]:
    return import_module(f"chatglm.models.{name}.template").encode_chat


def message(entry: dict[str, Any]) -> Message:
    tools = entry.get("tools", []) if entry["role"] == "system" else []
    return Message(entry["role"], entry["content"], entry.get("metadata", ""), tools)


def golden_prompts(name: str) -> list[tuple[list[Message], list[int]]]:
    """The conversations and prompts of all goldens of a family."""
    found = []
    if name in ("chatglm2", "codegeex2"):
        items = golden_items(f"tokenizer_{name}", "chat_prompts")
    elif name == "chatglm3":
        items = golden_items("tokenizer_chatglm3", "chat_inputs")
    else:
        items = []
        found += [
            (list(map(message, i["messages"])), i["input_ids"]) for i in golden_items("tokenizer_glm4", "chat_inputs")
        ]
    for item in items + (golden_items(f"chat_e2e_{name}", "chat_e2e") if name != "codegeex2" else []):
        past = item["history"] or []
        if past and not isinstance(past[0], dict):
            messages = to_messages(item["query"], check_history(past))
        else:
            messages = [*map(message, past), Message(item.get("role", "user"), item["query"])]
        ids = item.get("prompt_ids") or item["input_ids"]
        found.append((messages, ids[0] if isinstance(ids[0], list) else ids))
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_golden_prompts(name: str) -> None:
    tok, encode_chat = genuine_text_tokenizer(name), template(name)
    for messages, golden in golden_prompts(name):
        if name == "glm4" and any("<|" in one.content for one in messages):
            continue  # upstream makes control tokens of typed text
        assert encode_chat(tok, messages, 8192).input_ids == golden, messages


def test_the_golden_prompt_with_typed_names_has_them_as_text() -> None:
    typed = [pair for pair in golden_prompts("glm4") if "<|" in pair[0][-1].content]
    assert typed
    tok = genuine_text_tokenizer("glm4")
    for messages, golden in typed:
        ids = template("glm4")(tok, messages, 8192).input_ids
        assert tok.decode(ids) == tok.decode(golden)
        assert [i for i in ids if i >= tok.vocabulary.size] == [*golden[:3], golden[-1]]


@pytest.mark.parametrize("name", FAMILIES)
@laws
@given(data=st.data())
def test_typed_names_never_become_special_tokens(name: str, data: st.DataObject) -> None:
    tok = tiny_tokenizer(name)
    attack = st.lists(st.sampled_from([*tok.special_ids, "</s>", "\n"]) | text, max_size=6).map("".join)
    roles = st.sampled_from(["system", "user", "assistant"] + ["observation"] * (name in WITH_ROLES))
    made = st.builds(Message, roles, attack, attack if name in WITH_ROLES else st.just(""))
    messages = [*data.draw(st.lists(made, max_size=5)), Message("user", "x")]
    ids = template(name)(tok, messages, 10_000).input_ids
    first_special = min(tok.special_ids.values())
    num_turns = sum(name == "chatglm3" or one.content != "" for one in messages) + 1 if name in WITH_ROLES else 0
    assert sum(i >= first_special for i in ids) == 2 + num_turns
    assert not {1, 2} & set(ids) or name == "glm4"


@pytest.mark.parametrize("name", FAMILIES)
@laws
@given(
    history=st.lists(st.tuples(text, text).map(lambda pair: (pair[0] * 9, pair[1] * 9)), max_size=8),
    query=text.map(lambda drawn: drawn + "?"),
    limit=st.integers(20, 160),
)
def test_the_fewest_rounds_are_dropped(name: str, history: list[tuple[str, str]], query: str, limit: int) -> None:
    tok, encode_chat = tiny_tokenizer(name), template(name)

    def without(count: int) -> list[int]:
        return encode_chat(tok, to_messages(query, history[count:], "S"), 10_000).input_ids

    prompts = [without(count) for count in range(len(history) + 1)]
    fewest = next((count for count, prompt in enumerate(prompts) if len(prompt) < limit), None)
    if fewest is None:
        with pytest.raises(PromptTooLongError):
            encode_chat(tok, to_messages(query, history, "S"), limit)
    else:
        prompt = encode_chat(tok, to_messages(query, history, "S"), limit)
        assert (prompt.dropped_rounds, prompt.input_ids) == (fewest, prompts[fewest])


@pytest.mark.parametrize("name", FAMILIES)
def test_megabytes_are_refused_unread(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tok = genuine_text_tokenizer(name)
    num_read: list[int] = []
    encode = tok.encode_plain
    monkeypatch.setattr(tok, "encode_plain", lambda text: num_read.append(len(text)) or encode(text))
    with pytest.raises(PromptTooLongError, match="1000000 characters"):
        template(name)(tok, to_messages("x " * 500_000, []), 100)
    assert sum(num_read) < 100_000


@pytest.mark.parametrize("name", ["chatglm2", "glm4"])
def test_the_longest_token(name: str) -> None:
    tok, sizes = genuine_text_tokenizer(name), import_module(f"chatglm.models.{name}.template").SIZES
    assert max(len(tok.decode([i])) for i in range(min(tok.special_ids.values()))) == sizes.longest_token


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("messages", [[], [Message("system", "s")], [Message("user", "a"), Message("assistant", "b")]])
def test_conversation_must_end_with_the_user(name: str, messages: list[Message]) -> None:
    with pytest.raises(InvalidRequestError, match="user"):
        template(name)(tiny_tokenizer(name), messages, 100)


@pytest.mark.parametrize("name", ["chatglm2", "codegeex2"])
@pytest.mark.parametrize(
    "extra",
    [Message("observation", "1"), Message("assistant", "1", "get"), Message("system", "", tools=[{"name": "a"}])],
)
def test_models_without_tools_refuse_them(name: str, extra: Message) -> None:
    with pytest.raises(InvalidRequestError, match="cannot call tools"):
        template(name)(tiny_tokenizer(name), [extra, Message("user", "q")], 100)


def test_a_round_is_what_a_user_says_and_all_that_follows() -> None:
    roles = ["assistant", "system", "user", "user", "assistant", "observation", "assistant", "user"]
    assert round_numbers([Message(role, "") for role in roles]) == [0, None, 1, 1, 1, 1, 1, 2]


@pytest.mark.parametrize(
    "tool", [{"type": "function"}, {"type": "function", "function": {}}, {"type": "other"}, "tool"]
)
def test_a_tool_of_no_known_form(tool: Any) -> None:
    with pytest.raises(InvalidRequestError, match="tool"):
        template("glm4")(tiny_tokenizer("glm4"), [Message("system", "", tools=[tool]), Message("user", "q")], 100)


def test_system_messages_of_chatglm2_are_lines_in_front() -> None:
    render = import_module("chatglm.models.chatglm2.template").render
    expected = "S\n\n[Round 1]\n\n问：a\n\n答：b\n\n[Round 2]\n\n问：q\n\n答："
    assert render(to_messages("q", [("a", "b")], system="S")) == expected


def test_golden_code_prompts() -> None:
    tok = genuine_text_tokenizer("codegeex2")
    for item in golden_items("tokenizer_codegeex2", "code_prompts"):
        prompt = code_prompt(item["prompt"], None if item["language"] == "None" else item["language"])
        assert prompt == item["text"]
        assert tok.build_inputs_with_special_tokens(tok.encode_plain(prompt)) == item["input_ids"]
        assert tok.decode(item["input_ids"]) == item["decoded"]


def test_language_tags() -> None:
    golden = json.loads((GOLDEN / "tokenizer_codegeex2" / "language_tags.json").read_text(encoding="utf-8"))
    for part in ("evaluation", "demo"):
        assert all(language_tag(name) == tag for name, tag in golden[part].items())
    assert len(LANGUAGE_TAGS) == len({name.lower() for part in ("evaluation", "demo") for name in golden[part]})
    with pytest.raises(InvalidRequestError, match="python"):
        language_tag("pyton")
