"""A conversation as a file: Markdown and a web page to read, JSON to read again."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Any

from chatglm.atomic import write_text
from chatglm.errors import InvalidRequestError
from chatglm.generation.config import GenerationConfig
from chatglm.messages import History, Message, check_history
from chatglm.ui.error_texts import BilingualError, error_text
from chatglm.ui.rounds import Reply, Round, round_from_json

PAGE = Template(Path(__file__).with_name("transcript.html").read_text(encoding="utf-8"))
FORMS = '{"history": [["question", "answer"], ...]}, {"messages": [{"role": "user", "content": "..."}, ...]}'
LARGEST = 2**53 - 1  # of the whole numbers that browsers can tell apart
NO_JSON = ("文件不是 UTF-8 的 JSON。", "The file is not JSON in UTF-8.")


@dataclass(frozen=True)
class Transcript:
    """The rounds of a conversation, who answered, the system instruction and the parameters of the answers.

    `system` is "" if there was none, None if nothing is known of it.
    """

    model_name: str
    system: str | None
    rounds: Sequence[Round]
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def history(self) -> History:
        """The rounds that the model is told of."""
        return usable_history(self.rounds)

    def save(self, path: Path, *, may_replace: bool) -> None:
        """Write JSON if the name ends in .json, else Markdown.

        Raises:
            ChatGLMError: the file exists and may not be replaced.
            OSError: it cannot be written.
        """
        if path.exists() and not may_replace:
            raise BilingualError(f"{path} 已存在，未保存。", "It exists already and was left alone: give another name.")
        write_text(path, self.json() if path.suffix.lower() == ".json" else self.markdown())

    def markdown(self) -> str:
        parts = [f"# ChatGLM-6B 对话\n\n模型 model: {self.model_name}"]
        if self.system:
            parts.append(f"**系统指令：**\n\n{self.system}")
        for query, answer in self.history:
            parts += [f"**用户：**\n\n{query}", f"**ChatGLM-6B：**\n\n{answer}"]
        return "\n\n".join(parts) + "\n"

    def json(self) -> str:
        """`history` has the form that `model.chat` and `api.py` take; `rounds` holds other versions and figures too."""
        content = {
            "model": self.model_name,
            **({} if self.system is None else {"system": self.system}),
            "settings": dict(self.settings),
            "history": self.history,
            "rounds": [round_.to_json() for round_ in self.rounds],
        }
        return json.dumps(content, ensure_ascii=False, indent=2) + "\n"

    def html(self) -> str:
        """A self-contained web page: formulas as MathML, no script, nothing fetched."""
        from chatglm.ui.markdown import STYLE, render, render_plain

        blocks = [f'<div class="system">{render_plain(self.system)}</div>'] if self.system else []
        for question, answer in self.history:
            blocks += [
                f'<div class="user">{render_plain(question)}</div>',
                f'<div class="answer">{render(answer)}</div>',
            ]
        parts = "\n".join(blocks)
        return PAGE.substitute(model=html.escape(self.model_name), style=STYLE, parts=parts)


def usable_history(rounds: Sequence[Round]) -> History:
    """(question, answer) pairs, without answers that failed or never began."""
    return [(round_.question, round_.reply.text) for round_ in rounds if round_.reply.is_usable]


def finished_rounds(history: History) -> list[Round]:
    """Rounds of pairs of which no figures are known."""
    return [Round(question, (Reply(answer, "stop"),)) for question, answer in history]


def read_transcript(data: bytes) -> Transcript:
    """A file that `Transcript.json` wrote, a list of [query, answer] pairs, or OpenAI messages (also in an object).

    Raises:
        ChatGLMError: it is none of these.
    """
    try:
        content = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        raise BilingualError(*NO_JSON) from None
    return transcript_of(content)


def transcript_of(content: Any) -> Transcript:
    """The same for JSON that was read already."""
    try:
        json.dumps(content, ensure_ascii=False).encode()  # a lone surrogate could neither be answered nor saved again
    except (ValueError, RecursionError):
        raise BilingualError(*NO_JSON) from None
    try:
        return _transcript(content)
    except InvalidRequestError as error:
        raise BilingualError(
            f"文件里没有可用的对话：{error_text(error, 'zh')}可用的格式：{FORMS}。",
            f"The file holds no conversation that can be read. {error} Its form may be {FORMS}.",
        ) from None


def _transcript(content: Any) -> Transcript:
    if isinstance(content, list):
        is_messages = bool(content) and isinstance(content[0], Mapping)
        return _transcript({"messages" if is_messages else "history": content})
    if not isinstance(content, Mapping):
        raise InvalidRequestError("It is neither a list nor an object.")
    rounds, model = _rounds(content), content.get("model")
    return Transcript(model if isinstance(model, str) else "", _system(content), rounds, _settings(content))


def _system(content: Mapping[str, Any]) -> str | None:
    if not isinstance(system := content.get("system"), str | None):
        raise InvalidRequestError("system is not text.")
    if not system and isinstance(content.get("messages"), list):
        system = "\n".join(m.content for m in _messages(content["messages"]) if m.role == "system")
    return system or ("" if "system" in content else None)


def _settings(content: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that are known here; what an interface cannot show is refused too."""
    settings = {} if content.get("settings") is None else content["settings"]
    if not isinstance(settings, Mapping):
        raise InvalidRequestError("settings is not an object.")
    known = {name: value for name, value in settings.items() if name in GenerationConfig.names() and value is not None}
    GenerationConfig.of({}, **known)
    for name, value in known.items():
        if isinstance(value, int) and value > LARGEST:
            raise InvalidRequestError(f"{name} is too large a number.")
    return known


def _rounds(content: Mapping[str, Any]) -> list[Round]:
    for name, read in (
        ("rounds", lambda value: [round_from_json(each) for each in value]),
        ("messages", lambda value: finished_rounds(_pairs(_messages(value)))),
        ("history", lambda value: finished_rounds(check_history(value))),
    ):
        if isinstance(content.get(name), list):
            return read(content[name])
    raise InvalidRequestError('It has no list under "history", "rounds" or "messages".')


def _messages(content: list[Any]) -> list[Message]:
    return [_message(entry, number) for number, entry in enumerate(content)]


def _message(entry: Any, number: int) -> Message:
    role, text = (entry.get("role"), entry.get("content")) if isinstance(entry, Mapping) else (None, None)
    if isinstance(text, list):  # parts, of which some may be pictures
        text = "".join(part["text"] for part in text if isinstance(part, Mapping) and isinstance(part.get("text"), str))
    if role not in ("system", "developer", "user", "assistant") or not isinstance(text, str):
        raise InvalidRequestError(f"messages[{number}] has no role or no text.")
    return Message("system" if role == "developer" else role, text)


def _pairs(messages: list[Message]) -> History:
    """Neighbouring messages of one speaker are joined; a last question without an answer is left out."""
    pairs: list[list[str]] = []
    answered = True
    for message in messages:
        if message.role == "system":
            continue
        if message.role == "user" and answered:
            pairs.append([message.content, ""])
        elif message.role == "user":
            pairs[-1][0] += f"\n{message.content}"
        elif not pairs:
            pairs.append(["", message.content])
        else:
            pairs[-1][1] += f"\n{message.content}" if answered else message.content
        answered = message.role == "assistant"
    return [(question, answer) for question, answer in (pairs if answered else pairs[:-1])]
