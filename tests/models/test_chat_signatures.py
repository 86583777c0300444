"""`chat` and `stream_chat` of ChatGLM2-6B and later: signatures, histories, what is yielded. No network answers."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from typing import Any

import pytest

from chatglm.errors import InvalidRequestError
from chatglm.generation.deltas import Delta
from chatglm.messages import Message
from chatglm.models.role_chat import RoleChat
from chatglm.models.tool_calls import read_json_arguments
from chatglm.models.upstream_chat import RoundsChat

PIECES = ["", "\n", "你好", "！"]
CALL = ["get_weather", "\n", '{"city": ', '"北京"}']
TOOLS = [{"role": "system", "content": "", "tools": [{"type": "function", "function": {"name": "get_weather"}}]}]


class Scripted:
    """Answers with given pieces and remembers what it was asked."""

    def __init__(self, pieces: list[str]) -> None:
        self.pieces, self.asked, self.options = pieces, [], {}

    def stream_messages(self, tokenizer: Any, messages: list[Message], **options: Any) -> Iterator[Delta]:
        self.asked, self.options = messages, options
        deltas = [Delta(piece, None, 1, 1, 0) for piece in self.pieces]
        return iter([*deltas, Delta("", "stop", 1, 1, 0)])


class Roles(Scripted, RoleChat):
    read_arguments = staticmethod(read_json_arguments)


class Rounds(Scripted, RoundsChat):
    pass


BEFORE = "self tokenizer query history"
SAMPLING = "do_sample top_p temperature logits_processor"


@pytest.mark.parametrize(
    ("method", "names"),
    [
        (RoundsChat.chat, f"{BEFORE} max_length num_beams {SAMPLING}"),
        (RoundsChat.stream_chat, f"{BEFORE} past_key_values max_length {SAMPLING} return_past_key_values"),
        (RoleChat.chat, f"{BEFORE} role max_length num_beams {SAMPLING}"),
        (RoleChat.stream_chat, f"{BEFORE} role past_key_values max_length {SAMPLING} return_past_key_values"),
    ],
    ids=["ChatGLM2 chat", "ChatGLM2 stream_chat", "ChatGLM3 chat", "ChatGLM3 stream_chat"],
)
def test_signatures_are_upstreams(method: Any, names: str) -> None:
    signature = inspect.signature(method)
    assert list(signature.parameters)[: len(names.split())] == names.split()
    assert signature.parameters["max_length"].default == 8192


def test_chat_with_roles() -> None:
    model = Roles(PIECES)
    history = [{"role": "user", "content": "a"}, {"role": "assistant", "metadata": "", "content": "b"}]
    before = copy.deepcopy(history)
    answer, after = model.chat(None, "q", history, temperature=0)
    assert answer == "你好！"
    assert after == [
        *before,
        {"role": "user", "content": "q"},
        {"role": "assistant", "metadata": "", "content": "你好！"},
    ]
    assert history == before
    assert model.asked == [Message("user", "a"), Message("assistant", "b"), Message("user", "q")]
    assert model.options["max_length"] == 8192


def test_stream_chat_with_roles() -> None:
    yielded = list(Roles(PIECES).stream_chat(None, "q"))
    assert [answer for answer, _ in yielded] == ["", "你好", "你好！", "你好！"]
    assert all(after[0] == {"role": "user", "content": "q"} and len(after) == 2 for _, after in yielded)
    triples = list(Roles(PIECES).stream_chat(None, "q", past_key_values=(), return_past_key_values=True))
    assert [triple[:2] for triple in triples] == yielded
    assert all(past is None for *_, past in triples)


def test_tool_calls_are_read_when_they_are_complete() -> None:
    answers = [answer for answer, _ in Roles(CALL).stream_chat(None, "q", TOOLS)]
    assert answers[:3] == [
        "get_weather",
        {"name": "get_weather", "content": ""},
        {"name": "get_weather", "content": '{"city": '},
    ]
    assert answers[-1] == {"name": "get_weather", "parameters": {"city": "北京"}}
    answer, after = Roles(CALL).chat(None, "q", TOOLS)
    assert answer == answers[-1]
    model = Roles(PIECES)
    model.chat(None, "22", after, role="observation")
    assert [message.role for message in model.asked] == ["system", "user", "assistant", "observation"]
    assert (model.asked[0].tools, model.asked[2].metadata) == (tuple(TOOLS[0]["tools"]), "get_weather")


@pytest.mark.parametrize(
    ("history", "role"),
    [("text", "user"), ({"role": "user"}, "user"), ([("a", "b")], "user"), ([], "assistant"), (5, "user")],
)
def test_histories_and_roles_of_no_known_form(history: Any, role: str) -> None:
    with pytest.raises(InvalidRequestError):
        Roles(PIECES).chat(None, "q", history, role=role)
    with pytest.raises(InvalidRequestError):
        Roles(PIECES).stream_chat(None, "q", history, role)


def test_chat_with_rounds() -> None:
    model = Rounds(["你好", "！"])
    history = [["a", "b"]]
    assert model.chat(None, "q", history, system="S") == ("你好！", [("a", "b"), ("q", "你好！")])
    assert model.asked[0] == Message("system", "S")
    assert history == [["a", "b"]]
    yielded = list(model.stream_chat(None, "q", history, None, 100))
    assert [answer for answer, _ in yielded] == ["你好", "你好！", "你好！"]
    assert model.options["max_length"] == 100
    triples = list(model.stream_chat(None, "q", return_past_key_values=True))
    assert triples[-1] == ("你好！", [("q", "你好！")], None)
