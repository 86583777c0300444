"""Tool calls in answers of the models with role tokens: read as literals or JSON, never evaluated."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from chatglm.generation.text import TRAINING_TIME

RoleHistory = list[dict[str, Any]]
Answer = str | dict[str, Any]
CALLED = "tool_call"


def process_response(
    output: str, history: Sequence[Mapping[str, Any]], read_arguments: Callable[[str], Any] | None
) -> tuple[Answer, RoleHistory]:
    """The answer in a model's raw text, and a copy of `history` with it, as upstream's method of that name.

    Each part that begins with `<|assistant|>` is a message: a first line that names a tool, or is blank, then the
    content. The answer is that of the last: its text; the name and content for a tool; or its name and parameters where
    the first message of `history` offers tools and `read_arguments` can read the content (it raises ValueError if not).
    """
    items: RoleHistory = [dict(entry) for entry in history]
    offers = bool(items) and items[0].get("role") == "system" and "tools" in items[0]
    answer: Answer = ""
    for part in output.split("<|assistant|>"):
        metadata, newline, content = part.partition("\n")
        if not newline:
            metadata, content = "", part
        if not metadata.strip():
            content = content.strip()
            answer = content.replace(*TRAINING_TIME)
        else:
            answer = {"name": metadata.strip(), "content": content}
            if offers and read_arguments is not None:
                answer = _with_parameters(answer, read_arguments)
        items.append({"role": "assistant", "metadata": metadata, "content": content})
    return answer, items


def _with_parameters(call: dict[str, Any], read_arguments: Callable[[str], Any]) -> dict[str, Any]:
    try:
        return {"name": call["name"], "parameters": read_arguments(call["content"])}
    except ValueError:
        return call


def read_python_call(content: str) -> dict[str, Any]:
    """The arguments of `tool_call(name=literal, ...)` in lines between two others, as ChatGLM3-6B writes it.

    Raises ValueError for everything else, also for an unfinished call.
    """
    code = "\n".join(content.split("\n")[1:-1])
    try:
        call = ast.parse(code.strip(), mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.func.id != CALLED or call.args:
            raise ValueError(f"It is no call of {CALLED} with named arguments.")
        return {_name_of(keyword): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise ValueError(f"It is no call with literal arguments ({error}).") from None


def _name_of(keyword: ast.keyword) -> str:
    if keyword.arg is None:
        raise ValueError("An argument has no name.")
    return keyword.arg


def read_json_arguments(content: str) -> Any:
    """The arguments as JSON, as GLM-4 writes them; raises ValueError for everything else."""
    try:
        return json.loads(content)
    except RecursionError as error:
        raise ValueError(str(error)) from None
