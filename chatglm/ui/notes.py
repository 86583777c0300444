"""What a person should know about a finished answer, in Chinese and English at once."""

from __future__ import annotations

from chatglm.ui.rounds import Reply

STOPPED = "（已停止，保留已有内容 / stopped; the text so far is kept）"
STOPPED_EMPTY = "（已停止，尚无内容 / stopped before there was any text）"
CONTEXT_FULL = "（上下文已满，无法继续 / the context is full: it cannot go on）"
EMPTY_ANSWER = "（回答为空 / the answer is empty）"


def notes_on(reply: Reply, length_option: str, *, is_full: bool) -> list[str]:
    """The notes; `length_option` is what raises the length limit, `is_full` whether the context is the limit."""
    notes = []
    if reply.finish_reason == "cancelled":
        notes.append(STOPPED if reply.text else STOPPED_EMPTY)
    elif reply.finish_reason == "length" and is_full:
        notes.append(CONTEXT_FULL)
    elif reply.finish_reason == "length":
        notes.append(f"（已达到长度上限 / the answer reached the length limit, see {length_option}）")
    elif not reply.text:
        notes.append(EMPTY_ANSWER)
    if num := reply.dropped_rounds:
        notes.append(f"（上下文已满，最早的 {num} 轮未计入 / the context is full, oldest rounds left out: {num}）")
    return notes
