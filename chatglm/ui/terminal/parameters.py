"""What `/set` shows and changes: the sampling of the answers from now on, and how they are shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from chatglm.cells import wrap
from chatglm.cli.suggestions import did_you_mean
from chatglm.errors import InvalidRequestError
from chatglm.generation.config import GenerationConfig

if TYPE_CHECKING:
    from chatglm.ui.terminal.terminal_chat import TerminalChat

SAMPLING = {
    "temperature": "采样温度，0 为贪心 / randomness, 0 = greedy",
    "top_p": "核采样阈值 / from the best with this probability",
    "top_k": "只从最好的 K 个中采样 / from the K best, 0 = all",
    "repetition_penalty": "大于 1 减少重复 / above 1 repeats less",
    "seed": "随机种子 / same seed, same answers",
    "max_length": "提示与回答的 token 数 / tokens of prompt and answer",
    "max_new_tokens": "回答的 token 数 / tokens of the answer",
}
SWITCHES = {
    "verbose": "显示每次回答的速度 / figures after each answer",
    "plain": "不排版不着色 / no Markdown, no colour",
}
VALUES = {"on": True, "true": True, "1": True, "off": False, "false": False, "0": False}
RESET = "-"
HOW_TO_SET = f"修改 change: /set temperature 0.5；恢复默认 reset: /set temperature {RESET}"


def table(chat: TerminalChat) -> str:
    """All settings with their values and meanings."""
    values = {**sampling(chat), **_switches(chat)}
    rows = [(f"  {name} = {_shown(values[name])}", text) for name, text in {**SAMPLING, **SWITCHES}.items()]
    column = max(len(start) for start, _ in rows) + 3
    lines = [
        line for start, text in rows for line in wrap(f"{start.ljust(column)}{text}", chat.screen.width, " " * column)
    ]
    return "\n".join([*lines, *wrap(HOW_TO_SET, chat.screen.width)])


def change(chat: TerminalChat, name: str, text: str) -> str:
    """Change one setting; returns what it is now. Raises InvalidRequestError for an unknown name or a bad value."""
    name = name.lstrip("-").replace("-", "_").lower()
    if name not in SAMPLING and name not in SWITCHES:
        hint = did_you_mean(name, [*SAMPLING, *SWITCHES])
        raise InvalidRequestError(f"没有参数 {name} / There is no setting {name}.{hint}", "/set 列出全部 / lists all.")
    if not text:
        return f"（{name} = {_shown({**sampling(chat), **_switches(chat)}[name])}）"
    if name in SWITCHES:
        _switch(chat, name, text)
        return f"（{name} = {text.lower()}）"
    options = {**chat.session.options, name: None if text == RESET else _number(text)}
    GenerationConfig.of({}, **options)
    chat.session.options = options
    value = sampling(chat)[name]
    is_limited = name == "max_length" and (options[name] or 0) > value
    return f"（{name} = {_shown(value)}{'，模型的上限 / limit of the model' if is_limited else ''}）"


def sampling(chat: TerminalChat) -> dict[str, Any]:
    """The parameters that the next answer is sampled with."""
    config = GenerationConfig.of(chat.pipeline.defaults, **chat.session.options)
    values = {name: getattr(config, name) for name in SAMPLING}
    return values | {"max_length": min(values["max_length"], chat.pipeline.context_limit)}


def _switches(chat: TerminalChat) -> dict[str, bool]:
    return {"verbose": chat.is_verbose, "plain": not chat.screen.is_styled}


def _switch(chat: TerminalChat, name: str, text: str) -> None:
    value = VALUES.get(text.lower())
    if value is None:
        raise InvalidRequestError(f"{name} 的值是 on 或 off。", f"It is on or off, not {text!r}.")
    if name == "verbose":
        chat.is_verbose = value
    else:
        chat.screen.is_styled = not value


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text  # which GenerationConfig rejects with the right words


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return "-" if value is None else str(value)
