"""What `/info` shows, and the figures of an answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chatglm.cells import cell_width, wrap
from chatglm.demo import BANNER as DEMO_BANNER
from chatglm.ui.rounds import Reply
from chatglm.ui.terminal.parameters import sampling

if TYPE_CHECKING:
    from chatglm.ui.terminal.terminal_chat import TerminalChat


def information(chat: TerminalChat) -> str:
    """Model, precision, context used, settings, and the figures of the last answer."""
    session, pipeline = chat.session, chat.pipeline
    replies = [round_.reply for round_ in session.rounds]
    used = replies[-1].prompt_tokens + replies[-1].completion_tokens if replies else 0
    limit = pipeline.context_limit
    rows = {
        "模型 model": pipeline.name,
        "精度 precision": pipeline.precision,
        "上下文 context": f"{used} / {limit} tokens ({used / limit:.0%})"
        if used or not replies
        else f"? / {limit} tokens",
        "轮数 rounds": str(len(session.rounds)),
        "系统指令 system": session.system or "-",
        "参数 settings": ", ".join(f"{name} {value}" for name, value in sampling(chat).items() if value is not None),
        "上次回答 last": figures_of(session.last_reply) if session.last_reply is not None else "-",
    }
    column = max(map(cell_width, rows)) + 2
    lines = [
        line
        for name, text in rows.items()
        for line in wrap(f"{name}{' ' * (column - cell_width(name))}{text}", chat.screen.width, " " * column)
    ]
    return "\n".join([*lines, *(wrap(DEMO_BANNER, chat.screen.width) if pipeline.is_demo else [])])


def figures_of(reply: Reply) -> str:
    """Tokens, time to the first token, speed after it, and finish reason in one line."""
    speed = f"{reply.latest_s:.2f} s"
    if reply.tokens_per_second is not None:
        speed = f"first {reply.first_s:.2f} s · {reply.tokens_per_second:.1f} tokens/s"
    counts = f"prompt {reply.prompt_tokens} · answer {reply.completion_tokens} tokens"
    return f"[{counts} · {speed} · {reply.finish_reason}]"
