"""The OpenAI-compatible API, through OpenAI's own client and through plain HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from chatglm.messages import Message
from chatglm.pipeline import Pipeline
from tests.serving.servers import BROKEN, Server, break_after, eventually, serving

HELLO: list[Any] = [{"role": "user", "content": "你好"}]


def client_of(server: Server, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with client_of(server) as made:
        yield made


@pytest.fixture(scope="module")
def endless_client(endless: Server) -> Iterator[openai.OpenAI]:
    with client_of(endless) as made:
        yield made


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["demo"]
    assert client.models.retrieve("demo").object == "model"
    with pytest.raises(openai.NotFoundError, match="no model 'gpt-9'") as caught:
        client.models.retrieve("gpt-9")
    assert caught.value.code == "model_not_found"


def test_chat_with_exact_usage(client: openai.OpenAI, demo: Pipeline) -> None:
    whole = client.chat.completions.create(model="gpt-3.5-turbo", messages=HELLO, temperature=0)
    result = demo.submit([Message("user", "你好")], temperature=0).result(60)
    choice = whole.choices[0]
    assert (choice.message.role, choice.message.content) == ("assistant", result.text)
    assert choice.finish_reason == "stop"
    assert whole.model == "demo"
    assert whole.usage is not None
    assert whole.usage.prompt_tokens == result.prompt_tokens
    assert whole.usage.completion_tokens == result.completion_tokens
    assert whole.usage.total_tokens == result.prompt_tokens + result.completion_tokens
    assert whole.usage.prompt_tokens_details is not None
    assert whole.usage.prompt_tokens_details.cached_tokens == 0  # of a model that reads both ways


def test_chat_streamed(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="demo", messages=HELLO, temperature=0)
    stream = client.chat.completions.create(
        model="demo", messages=HELLO, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks[-2:]] == [None, "stop"]
    assert last.choices == []
    assert last.usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks)
    assert {chunk.id for chunk in (*chunks, last)} == {last.id}


def test_the_clients_own_stream_helper(client: openai.OpenAI) -> None:
    """It insists on every field of a chunk."""
    with client.chat.completions.stream(model="demo", messages=HELLO, temperature=0) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert final.choices[0].finish_reason == "stop"


def test_a_stream_without_usage_has_none(server: Server) -> None:
    reply = server.post("/v1/chat/completions", json={"messages": HELLO, "stream": True, "max_tokens": 3})
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert '"usage"' not in reply.text
    assert reply.text.endswith("data: [DONE]\n\n")


def test_system_and_history(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="demo",
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "我叫"}, {"type": "text", "text": "小明"}]},
            {"role": "assistant", "content": "你好，小明！"},
            {"role": "user", "content": "我叫什么名字"},
        ],
    )
    assert "小明" in (answer.choices[0].message.content or "")

    def prompt_tokens(*first: Any) -> int:
        made = client.chat.completions.create(model="demo", messages=[*first, *HELLO], max_tokens=1)
        assert made.usage is not None
        return made.usage.prompt_tokens

    plain = prompt_tokens()
    system = prompt_tokens({"role": "system", "content": "be kind"})
    assert system > plain
    assert prompt_tokens({"role": "developer", "content": "be kind"}) == system


def test_limits_stop_and_seed(endless_client: openai.OpenAI) -> None:
    def make(**parameters: Any) -> Any:
        return endless_client.chat.completions.create(
            model="x", messages=[{"role": "user", "content": "hello"}], **parameters
        )

    for name in ("max_tokens", "max_completion_tokens"):
        made = make(**{name: 9}, seed=3, temperature=1)
        assert made.choices[0].finish_reason == "length"
        assert made.usage.completion_tokens == 9
    assert make(max_tokens=99, max_completion_tokens=2).usage.completion_tokens == 2
    text = made.choices[0].message.content
    assert make(max_tokens=9, seed=3, temperature=1).choices[0].message.content == text
    assert make(max_tokens=9, seed=-3, temperature=1).choices[0].message.content != text
    stopped = make(max_tokens=9, seed=3, temperature=1, stop=["never", text[3:5]])
    assert stopped.choices[0].message.content == text[: text.index(text[3:5])]
    assert stopped.choices[0].finish_reason == "stop"
    greedy = {make(max_tokens=20, temperature=0, seed=seed).choices[0].message.content for seed in (1, 2)}
    assert len(greedy) == 1


def test_max_tokens_beyond_the_context_is_clamped(client: openai.OpenAI) -> None:
    """LangChain's ChatGLM3 sends 20000."""
    made = client.chat.completions.create(model="demo", messages=HELLO, max_tokens=20000)
    assert made.choices[0].finish_reason == "stop"


def test_several_choices(endless_client: openai.OpenAI) -> None:
    hello: list[Any] = [{"role": "user", "content": "hello"}]
    asked: dict[str, Any] = {"model": "x", "messages": hello, "n": 3, "max_tokens": 12, "seed": 5, "temperature": 1}
    whole = endless_client.chat.completions.create(**asked)
    texts = [choice.message.content for choice in whole.choices]
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    assert len(set(texts)) == 3
    one = endless_client.chat.completions.create(**{**asked, "n": 1})
    assert one.choices[0].message.content == texts[0]
    assert one.usage is not None
    assert whole.usage is not None
    assert whole.usage.prompt_tokens == one.usage.prompt_tokens
    assert whole.usage.completion_tokens == 36
    streamed = ["", "", ""]
    for chunk in endless_client.chat.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts


def test_text_completions(endless_client: openai.OpenAI, endless_pipeline: Pipeline) -> None:
    expected = endless_pipeline.generate("hello", max_new_tokens=16, temperature=0)
    made = endless_client.completions.create(model="x", prompt="hello", temperature=0)
    assert made.choices[0].text == expected
    assert made.usage is not None
    assert made.usage.completion_tokens == 16
    several = endless_client.completions.create(
        model="x", prompt=["hello", "fox"], temperature=0, echo=True, n=2, max_tokens=4
    )
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    assert [choice.text[:3] for choice in several.choices] == ["hel", "hel", "fox", "fox"]
    stream = endless_client.completions.create(model="x", prompt="hello", temperature=0, stream=True, echo=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == "hello" + expected


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"logprobs": True}, "logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"n": 9}, "n"),
        ({"temperature": 3}, "temperature"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "messages"),
        ({"messages": [{"role": "system", "content": ""}]}, "messages"),
        ({"messages": []}, "messages"),
    ],
)
def test_unsupported_fields_are_rejected(client: openai.OpenAI, more: dict[str, Any], param: str) -> None:
    asked: dict[str, Any] = {"model": "demo", "messages": HELLO, **more}
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**asked)
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"


def test_refusals_say_what_to_do(server: Server) -> None:
    for body, remedy in (
        ({"messages": HELLO, "response_format": {"type": "json_object"}}, "ask for the format in the message"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "into a message of the user"),
        ({"messages": [{"role": "function", "name": "f", "content": "x"}]}, "into a message of the user"),
    ):
        assert remedy in server.post("/v1/chat/completions", json=body).json()["error"]["message"]
    assert "send" in server.post("/v1/completions", json={"prompt": None}).json()["error"]["message"]
    too_long = server.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "a" * 10**6}]})
    error = too_long.json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert "This model's maximum context length is" in error["message"]
    packed = server.post("/v1/chat/completions", content=b"{}", headers={"content-encoding": "gzip"})
    assert packed.status_code == 415
    assert "Content-Encoding" in packed.json()["error"]["message"]


def test_an_instruction_at_the_end_is_answered(endless: Server) -> None:
    """A summary that is asked for after the conversation, and a task that comes alone."""
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    for before in ([], talk):
        whole = [
            endless.post(
                "/v1/chat/completions",
                json={"messages": [*before, {"role": role, "content": "hello"}], "max_tokens": 5, "temperature": 0},
            ).json()
            for role in ("system", "developer", "user")
        ]
        assert whole[0]["choices"] == whole[1]["choices"] == whole[2]["choices"]


def test_dropped_rounds_are_told(endless: Server) -> None:
    talk = [{"role": role, "content": "fox " * 30} for role in ("user", "assistant")] * 40
    body = {"messages": [*talk, {"role": "user", "content": "hello"}], "max_tokens": 2}
    whole = endless.post("/v1/chat/completions", json=body).json()
    assert 0 < whole["dropped_rounds"] < 40
    streamed = endless.post("/v1/chat/completions", json={**body, "stream": True}).text
    assert f'"dropped_rounds":{whole["dropped_rounds"]}' in streamed


def test_fields_sent_by_common_clients_are_ignored(client: openai.OpenAI) -> None:
    """NextChat's and Open WebUI's bodies."""
    made = client.chat.completions.create(
        model="gpt-4o-mini",
        messages=HELLO,
        presence_penalty=0.5,
        frequency_penalty=0,
        logit_bias={},
        user="me",
        tools=[],
        tool_choice="none",
        response_format={"type": "text"},
        logprobs=False,
        extra_body={"chat_id": "1", "features": {"web_search": False}},
    )
    assert made.choices[0].finish_reason == "stop"


def test_errors_are_those_the_client_knows(demo: Pipeline, endless_pipeline: Pipeline) -> None:
    with serving(demo, api_key="sesame") as server:
        with client_of(server) as wrong, pytest.raises(openai.AuthenticationError, match="API key") as caught:
            wrong.models.list()
        assert caught.value.code == "invalid_api_key"
        with client_of(server, "sesame") as friend:
            assert list(friend.models.list())
            with pytest.raises(openai.BadRequestError, match="tokens") as too_long:
                friend.chat.completions.create(model="x", messages=[{"role": "user", "content": "啊" * 5000}])
            assert too_long.value.code == "context_length_exceeded"
            with pytest.raises(openai.NotFoundError):
                friend.responses.create(model="x", input="hello")
    with serving(endless_pipeline, request_timeout=0.3) as server, client_of(server) as slow:
        with pytest.raises(openai.InternalServerError, match="took longer") as late:
            slow.chat.completions.create(model="x", messages=[{"role": "user", "content": "hello"}])
        assert late.value.status_code == 504
        eventually(server.is_idle)


def test_a_failure_in_the_middle_reaches_the_client(
    endless: Server, endless_client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {"model": "x", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 50}
    with monkeypatch.context() as patch:
        break_after(patch, 5)
        texts = []
        with pytest.raises(openai.APIError, match="NaN"):
            for chunk in endless_client.chat.completions.create(**asked, stream=True):
                texts.append(chunk.choices[0].delta.content)
        assert any(texts)
    with monkeypatch.context() as patch:
        break_after(patch, 0)
        with pytest.raises(openai.InternalServerError, match=BROKEN):
            endless_client.chat.completions.create(**asked)
    eventually(endless.is_idle)


def test_choices_beyond_the_free_slots_are_all_rejected(endless: Server, endless_client: openai.OpenAI) -> None:
    """Either every choice is admitted or none."""
    streams = [endless.client.stream("POST", "/stream", json={"prompt": "hello"}) for _ in range(25)]
    for stream in streams:
        assert stream.__enter__().status_code == 200
    with pytest.raises(openai.RateLimitError) as caught:
        endless_client.chat.completions.create(model="x", messages=[{"role": "user", "content": "hello"}], n=8)
    assert caught.value.response.headers["retry-after"] == "1"
    eventually(lambda: (stats := endless.service.stats()).running + stats.waiting == 25)
    for stream in streams:
        stream.__exit__(None, None, None)
    eventually(endless.is_idle)
    prompts = {"prompt": ["hello"] * 16, "n": 8}
    reply = endless.post("/v1/completions", json=prompts)
    assert reply.status_code == 400
    assert "128 answers" in reply.json()["error"]["message"]


def test_the_default_system_message_is_for_chats_without_one(endless_pipeline: Pipeline) -> None:
    """Raw completions never get it: they equal `Pipeline.generate`."""
    hello = Message("user", "hello")

    def usage(*messages: Message) -> int:
        body = {"messages": [vars(message) for message in messages], "max_tokens": 1}
        return int(server.post("/v1/chat/completions", json=body).json()["usage"]["prompt_tokens"])

    def expected(*messages: Message) -> int:
        return endless_pipeline.submit(messages, max_new_tokens=1).result(60).prompt_tokens

    with serving(endless_pipeline, system="be kind and brief") as server:
        assert usage(hello) == expected(Message("system", "be kind and brief"), hello) > expected(hello)
        assert usage(Message("system", "fox"), hello) == expected(Message("system", "fox"), hello)
        asked = {"prompt": "hello", "temperature": 0, "max_tokens": 16}
        made = server.post("/v1/completions", json=asked).json()
        assert made["choices"][0]["text"] == endless_pipeline.generate("hello", temperature=0, max_new_tokens=16)
        assert (
            made["usage"]["prompt_tokens"]
            == endless_pipeline.complete("hello", max_new_tokens=1).result(60).prompt_tokens
        )
        streamed = {system: stream_usage(server, system) for system in (None, "", "fox")}
        assert streamed[None] == usage(hello)
        assert streamed[""] == expected(hello)
        assert streamed["fox"] == usage(Message("system", "fox"), hello)


def stream_usage(server: Server, system: str | None) -> int:
    """Prompt tokens of `POST /stream`, where an empty `system` switches the default off."""
    text = server.post("/stream", json={"prompt": "hello", "system": system, "max_new_tokens": 1}).text
    return int(json.loads(text.split("event: done\ndata: ")[1])["usage"]["prompt_tokens"])


def test_messages_pass_through_to_the_template(endless: Server, endless_pipeline: Pipeline) -> None:
    """Neighbours of one role, a late system message, an assistant that begins."""
    names: Any = {"u": "user", "a": "assistant", "s": "system"}
    for roles in ("suau", "uuau", "auau", "uauusus"):
        messages = [Message(names[role], f"{role}{number}") for number, role in enumerate(roles)]
        body = {"messages": [vars(message) for message in messages], "max_tokens": 6, "temperature": 0}
        answer = endless.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]
        assert answer == endless_pipeline.submit(messages, max_new_tokens=6, temperature=0).result(60).text, roles


def test_plain_requests_work(server: Server) -> None:
    """No content type at all, and no key but a header for one."""
    reply = httpx.post(
        f"{server.url}/v1/chat/completions",
        content=b'{"messages":[{"role":"user","content":"hello"}]}',
        headers={"authorization": "Bearer none"},
        timeout=60,
    )
    assert reply.status_code == 200
