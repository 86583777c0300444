"""A conversation as the HTML of the page: questions as typed, answers rendered, what can be done with each."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence

from chatglm.ui.error_texts import Language
from chatglm.ui.gradio.page_texts import message
from chatglm.ui.markdown import render, render_plain
from chatglm.ui.rounds import Reply, Round

_CODE_HEAD = '<div class="code-head">'


def rounds_html(
    rounds: Sequence[Round], language: Language, context_limit: int, is_full: Callable[[Round], bool]
) -> str:
    """A finished conversation; `is_full` tells whether a round leaves no room to go on with its answer."""
    return "".join(
        round_html(round_, index, language, context_limit, is_full=is_full(round_))
        for index, round_ in enumerate(rounds)
    )


def round_html(round_: Round, index: int, language: Language, context_limit: int, *, is_full: bool) -> str:
    """A finished round with its buttons."""
    buttons = "".join(_button(name, language) for name in ("copy", "edit", "take_back"))
    return _question(round_.question, index, language, buttons) + _answer(
        round_, index, language, context_limit, is_full
    )


def pending_html(question: str, reply: Reply, place: int, index: int, language: Language, context_limit: int) -> str:
    """A question that is being answered, the text so far, and the place in the queue."""
    if reply.text:
        content, note = _text(reply.text, language), figures(reply, language, context_limit)
    else:
        wait = message("queued", language, place=place) if place else message("thinking", language)
        content, note = f'<p class="wait"><i class="dots" aria-hidden="true"></i>{html.escape(wait)}</p>', ""
    return _question(question, index, language) + _article("answer", index, language, content, note)


def figures(reply: Reply, language: Language, context_limit: int, *, is_full: bool = False) -> str:
    """Speed, context used, and what else there is to know of an answer."""
    notes = []
    if reply.tokens_per_second is not None:
        notes.append(message("speed", language, rate=reply.tokens_per_second))
    if used := reply.prompt_tokens + reply.completion_tokens:
        notes.append(message("context", language, used=used, limit=context_limit))
    if reply.finish_reason in ("length", "deadline"):
        notes.append(message(reply.finish_reason, language))
    elif reply.finish_reason == "cancelled":
        notes.append(message("stopped", language))
    elif reply.finish_reason == "stop" and not reply.text:
        notes.append(message("empty", language))
    if reply.dropped_rounds:
        notes.append(message("dropped", language, rounds=reply.dropped_rounds))
    if is_full:
        notes.append(message("full", language))
    return " · ".join(notes)


def _question(text: str, index: int, language: Language, buttons: str = "") -> str:
    return _article("question", index, language, f'<div class="bubble">{render_plain(text)}</div>', "", buttons)


def _answer(round_: Round, index: int, language: Language, context_limit: int, is_full: bool) -> str:
    reply = round_.reply
    content = _text(reply.text, language) if reply.text else ""
    if reply.error:
        content += f'<p class="error">{html.escape(reply.error)}</p>'
    buttons = _versions(round_, language)
    if reply.text:
        buttons += _button("copy", language)
    buttons += _button("retry", language)
    if reply.is_cut and not is_full:
        buttons += _button("continue", language, shows_text=True)
    note = "" if reply.error else figures(reply, language, context_limit, is_full=is_full)
    return _article("answer failed" if reply.error else "answer", index, language, content, note, buttons)


def _article(role: str, index: int, language: Language, content: str, note: str, buttons: str = "") -> str:
    speaker = message("you" if role == "question" else "model", language)
    footer = f'<div class="buttons">{buttons}</div>' if buttons else ""
    footer += f'<p class="note">{html.escape(note)}</p>' if note else ""
    return (
        f'<article class="{role}" data-round="{index}"><h2 class="unseen">{speaker}</h2>{content}'
        f'<footer class="foot">{footer}</footer></article>'
    )


def _text(text: str, language: Language) -> str:
    code_head = _CODE_HEAD + _button("copy_code", language)
    return f'<div class="text">{render(text).replace(_CODE_HEAD, code_head)}</div>'


def _versions(round_: Round, language: Language) -> str:
    """`< 2/3 >`, if there are several answers."""
    number, count = round_.selected, len(round_.versions)
    if count < 2:
        return ""
    earlier = _button("earlier", language, version=number - 1, is_enabled=number > 0)
    later = _button("later", language, version=number + 1, is_enabled=number < count - 1)
    return f'<span class="versions">{earlier}<span>{number + 1}/{count}</span>{later}</span>'


def _button(
    action: str, language: Language, *, version: int | None = None, is_enabled: bool = True, shows_text: bool = False
) -> str:
    name = message(action, language)
    attributes = f'data-action="{action}" title="{name}" aria-label="{name}"'
    if version is not None:
        attributes += f' data-version="{version}"'
    if not is_enabled:
        attributes += ' aria-disabled="true"'
    text = f"<span>{name}</span>" if shows_text else ""
    return f'<button type="button" {attributes}><i class="icon {action}" aria-hidden="true"></i>{text}</button>'
