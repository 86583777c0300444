"""A conversation as a file: Markdown and a web page to read, JSON to read again."""

from __future__ import annotations

import html
import json
from dataclasses import dataclass
from pathlib import Path
from string import Template

from chatglm.atomic import write_text
from chatglm.errors import ChatGLMError, InvalidRequestError
from chatglm.messages import History, check_history
from chatglm.ui.markdown import inert_markdown

PAGE = Template(Path(__file__).with_name("transcript.html").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Transcript:
    """The rounds of a conversation, who answered, and the system instruction if there was one."""

    model_name: str
    system: str | None
    history: History

    def save(self, path: Path, *, may_replace: bool) -> None:
        """Write JSON if the name ends in .json, else Markdown.

        Raises:
            ChatGLMError: the file exists and may not be replaced.
            OSError: it cannot be written.
        """
        if path.exists() and not may_replace:
            raise ChatGLMError(f"{path} 已存在，未保存。", "It exists already and was left alone: give another name.")
        write_text(path, self.json() if path.suffix.lower() == ".json" else self.markdown())

    def markdown(self) -> str:
        parts = [f"# ChatGLM-6B 对话\n\n模型 model: {self.model_name}"]
        if self.system:
            parts.append(f"**系统指令：**\n\n{self.system}")
        for query, answer in self.history:
            parts += [f"**用户：**\n\n{query}", f"**ChatGLM-6B：**\n\n{answer}"]
        return "\n\n".join(parts) + "\n"

    def json(self) -> str:
        """`history` has the form that `model.chat` and `api.py` take."""
        content = {"model": self.model_name, "system": self.system, "history": self.history}
        return json.dumps(content, ensure_ascii=False, indent=2) + "\n"

    def html(self) -> str:
        """A self-contained web page: formulas as MathML, no script, nothing fetched."""
        from mdtex2html import convert

        parts = [("system", self.system)] if self.system else []
        for query, answer in self.history:
            parts += [("user", query), ("answer", answer)]
        extensions = ["fenced_code", "tables", "nl2br", "sane_lists"]
        blocks = [
            f'<div class="{name}">{convert(inert_markdown(text), extensions=extensions)}</div>' for name, text in parts
        ]
        return PAGE.substitute(model=html.escape(self.model_name), parts="\n".join(blocks))


def read_json(data: bytes) -> History:
    """The rounds of a file that `Transcript.json` wrote, or of a bare list of [query, answer] pairs.

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
