"""Answers of the models with role tokens: golden answers and calls, and nothing is ever evaluated."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatglm.models.tool_calls import process_response, read_json_arguments, read_python_call
from tests.family_tokenizers import genuine_text_tokenizer
from tests.tokenizers import GOLDEN, golden_items, laws

READERS: dict[str, Callable[[str], Any]] = {"chatglm3": read_python_call, "glm4": read_json_arguments}
WITH_TOOLS = [{"role": "system", "content": "", "tools": [{"name": "track"}]}]


def others(name: str, key: str) -> list[dict[str, Any]]:
    golden = json.loads((GOLDEN / f"tokenizer_{name}" / "process_response.json").read_text(encoding="utf-8"))
    return golden.get(key, [])


@pytest.mark.parametrize("name", READERS)
def test_golden_answers(name: str) -> None:
    for item in golden_items(f"tokenizer_{name}", "process_response"):
        before = copy.deepcopy(item["history"])
        answer, items = process_response(item["output"], item["history"], READERS[name])
        assert (answer, items) == (item["content"], [*before, *item["new_items"]])
        assert item["history"] == before


@pytest.mark.parametrize("name", READERS)
def test_golden_replies(name: str) -> None:
    """Replies as ids: the text of all but the end token gives the answer and history of upstream's `chat`."""
    tok = genuine_text_tokenizer(name)
    for item in golden_items(f"tokenizer_{name}", "chat"):
        if "response" not in item:
            continue
        ends = item["generate_call"]["eos_token_id"]
        ids = item["reply_ids"] if item["reply_ids"][-1] in ends else item["reply_ids"][:-1]
        asked = [*item["history"], {"role": item["role"], "content": item["query"]}]
        answer, items = process_response(tok.decode(i for i in ids if i not in ends), asked, READERS[name])
        assert (answer, items) == (item["response"], item["new_history"])


@pytest.mark.parametrize("name", READERS)
def test_what_is_no_call_is_given_as_it_is(name: str) -> None:
    """Upstream raises, or evaluates it."""
    for item in others(name, "upstream_raises") + others(name, "never_run_upstream_unsafe"):
        answer, _ = process_response(item["output"], WITH_TOOLS, READERS[name])
        called, _, content = item["output"].partition("\n")
        assert answer == {"name": called.strip(), "content": content}


@pytest.mark.parametrize(
    "code",
    [
        "tool_call(a=__import__('os').getcwd())",
        "tool_call(a=[x for x in (1,)])",
        "tool_call(a=1)(b=2)",
        "other(a=1)",
        "tool_call(1)",
        "tool_call(**{'a': 1})",
        "tool_call(a=1); print(2)",
        "tool_call(a=1",
        "tool_call(a=f'{1}')",
        "tool_call(a=" + "(" * 5000 + ")" * 5000 + ")",
        "tool_call(a=" + "-" * 50_000 + "1)",
        "tool_call(a='\x00')",
        "",
    ],
    ids=lambda code: code[:30],
)
def test_only_literal_arguments_are_read(code: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        read_python_call(f"```python\n{code}\n```")


def test_deep_json_is_refused() -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        read_json_arguments("[" * 200_000)


@laws
@given(st.text(alphabet="tool_call(=)'[]{},:1a\n`\"\\ -<|assistant|>") | st.text())
def test_any_answer_is_read(output: str) -> None:
    for reader in READERS.values():
        answer, items = process_response(output, WITH_TOOLS, reader)
        assert isinstance(answer, str | dict)
        assert len(items) == 2 + output.count("<|assistant|>")
