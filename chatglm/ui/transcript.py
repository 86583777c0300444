"""A conversation as a file: Markdown and a web page to read, JSON to send on and to read again.

Knows: the forms, and that a file is written whole or not at all. Does not know who asked for it.
"""

from __future__ import annotations

import html
import json
import os
from pathlib import Path
from string import Template

from chatglm.errors import ChatGLMError, InvalidRequestError
from chatglm.messages import History, check_history
from chatglm.ui.gradio.markdown import shown_text

PAGE = Template(Path(__file__).with_name("transcript.html").read_text(encoding="utf-8"))


def save_transcript(path: Path, history: History, model_name: str, system: str | None, *, may_replace: bool) -> None:
    """Write the conversation to `path`: JSON if it ends in .json, else Markdown; UTF-8 both.

    Args:
        path: the file.
        history: the rounds.
        model_name: who answered.
        system: the instruction in front, if any.
        may_replace: whether an existing file may go.

    Raises:
        ChatGLMError: the file exists, or cannot be written.
    """
    if path.exists() and not may_replace:
        raise ChatGLMError(f"{path} 已存在，未保存。", "It exists already and was left alone: give another name.")
    render = render_json if path.suffix.lower() == ".json" else render_markdown
    try:
        _write_whole(path, render(history, model_name, system))
    except OSError as error:
        raise ChatGLMError(f"无法保存到 {path}。", f"Cannot save there: {error.strerror or error}.") from None


def render_markdown(history: History, model_name: str, system: str | None) -> str:
    """The conversation for people."""
    parts = [f"# ChatGLM-6B 对话\n\n模型 model: {model_name}"]
    if system:
        parts.append(f"**系统指令：**\n\n{system}")
    for query, answer in history:
        parts += [f"**用户：**\n\n{query}", f"**ChatGLM-6B：**\n\n{answer}"]
    return "\n\n".join(parts) + "\n"


def render_json(history: History, model_name: str, system: str | None) -> str:
    """The conversation for programs; `history` has the form that `model.chat` and `api.py` take."""
    return json.dumps({"model": model_name, "system": system, "history": history}, ensure_ascii=False, indent=2) + "\n"


def render_html(history: History, model_name: str, system: str | None) -> str:
    """The conversation as a web page that needs nothing else: formulas as MathML, no script, nothing fetched."""
    from mdtex2html import convert

    def body(text: str) -> str:
        return str(convert(shown_text(text), extensions=["fenced_code", "tables", "nl2br", "sane_lists"]))

    parts = [f'<div class="system">{body(system)}</div>'] if system else []
    for query, answer in history:
        parts += [f'<div class="user">{body(query)}</div>', f'<div class="answer">{body(answer)}</div>']
    return PAGE.substitute(model=html.escape(model_name), parts="\n".join(parts))


def read_json(data: bytes) -> History:
    """The rounds of a file that `render_json` wrote, or of a bare list of [query, response] pairs.

    Raises:
        ChatGLMError: it is neither.
    """
    try:
        content = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        raise ChatGLMError("文件不是 UTF-8 的 JSON。", "The file is not JSON in UTF-8.") from None
    try:
        return check_history(content["history"] if isinstance(content, dict) else content)
    except (InvalidRequestError, KeyError):
        raise ChatGLMError(
            "文件里没有对话：需要 [[问题, 回答], ...]。",
            'It holds no conversation: a list of [question, answer] pairs is needed, or one under "history".',
        ) from None


def _write_whole(path: Path, text: str) -> None:
    """Write beside the place first, so that no reader and no crash ever finds half a file."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(beside, "x", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
