"""The rounds of a conversation on the page, with what can be done to them, and the answer that is being generated."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import streamlit as st
from streamlit.runtime.scriptrunner import RerunException

from chatglm.ui.rounds import Reply, Round
from chatglm.ui.session import ChatSession, Pending, answer_in_background
from chatglm.ui.streamlit.components import answer, copy_button, escaped, feed, keep, question
from chatglm.ui.streamlit.page_texts import Texts
from chatglm.ui.streamlit.settings import MAX_ROUNDS, apply_settings
from chatglm.ui.transcript import Transcript

if TYPE_CHECKING:
    from chatglm.generation.deltas import Delta

DRAW_EVERY_S, KEEP_EVERY_S = 0.05, 1.0
WAIT_S = 0.2  # between two checks whether Streamlit wants the thread back


def start(session: ChatSession, ask: Callable[[], Iterable[Delta]]) -> None:
    """Let a thread generate an answer with the settings of now."""
    st.session_state.pop("editing", None)
    apply_settings(session)
    answer_in_background(ask())


def kept(session: ChatSession) -> Transcript:
    """What a reload leaves: what stopping the answer would, or all from before it as long as it has no text."""
    pending, so_far, rounds = session.pending, session.round_so_far, session.rounds
    if pending is not None:
        has_all = len(rounds) == len(pending.before)
        rounds = [*rounds, so_far] if so_far is not None and (has_all or so_far.reply.text) else pending.before
    return replace(session.transcript, rounds=rounds)


def show_conversation(session: ChatSession, context_limit: int, texts: Texts) -> None:
    """Draw all rounds and, if an answer is pending, keep drawing it."""
    pending = session.pending  # it may end while the page is drawn: then all is drawn again
    if num := session.num_forgotten:
        st.caption(texts("forgotten", limit=MAX_ROUNDS, rounds=num))
    for index, round_ in enumerate(session.rounds):
        is_edited = session.pending is None and st.session_state.get("editing") is round_.versions[0]
        _show_question(session, round_, index, texts, is_edited=is_edited)
        with st.chat_message("assistant"):
            _show_reply(round_.reply, index, context_limit, texts, is_full=session.is_full(round_))
            _show_actions(session, round_, index, texts)
    if pending is not None:
        index = len(session.rounds)
        _show_question(session, pending.round, index, texts)
        with st.chat_message("assistant"):
            _show_pending(session, index, context_limit, texts)


def _show_question(session: ChatSession, round_: Round, index: int, texts: Texts, *, is_edited: bool = False) -> None:
    with st.chat_message("user"):
        if not is_edited:
            question(round_.question)
            return
        with st.form(f"edit-{index}", border=False):
            st.text_area(
                texts("edit"), round_.question, key=f"edited-{index}", help=texts("edit_help"), height="content"
            )
            with st.container(horizontal=True):
                send, cancel = partial(_send_edited, session, index), partial(st.session_state.pop, "editing", None)
                st.form_submit_button(texts("send"), type="primary", on_click=send)
                st.form_submit_button(texts("cancel"), on_click=cancel)


def _send_edited(session: ChatSession, index: int) -> None:
    if (text := st.session_state[f"edited-{index}"]).strip():
        start(session, lambda: session.edit(index, text))


def _show_reply(reply: Reply, index: int, context_limit: int, texts: Texts, *, is_full: bool) -> None:
    answer(reply.text, f"answer-{index}", texts)
    if reply.error:
        st.error(escaped(reply.error))
    notes = [*_figures(reply, context_limit, texts), *_notes(reply, texts), *([texts("full")] if is_full else [])]
    st.caption(escaped(" · ".join(notes)))


def _figures(reply: Reply, context_limit: int, texts: Texts) -> list[str]:
    figures = []
    if reply.tokens_per_second is not None:
        figures.append(texts("speed", rate=reply.tokens_per_second))
    if used := reply.prompt_tokens + reply.completion_tokens:
        figures.append(texts("context", used=used, limit=context_limit))
    return figures


def _notes(reply: Reply, texts: Texts) -> list[str]:
    notes = []
    if reply.finish_reason == "cancelled":
        notes.append(texts("stopped" if reply.text else "nothing"))
    elif reply.finish_reason in ("length", "deadline"):
        notes.append(texts(reply.finish_reason))
    elif not reply.text and not reply.error:
        notes.append(texts("empty"))
    if reply.dropped_rounds:
        notes.append(texts("dropped", rounds=reply.dropped_rounds))
    return notes


def _show_actions(session: ChatSession, round_: Round, index: int, texts: Texts) -> None:
    is_pending, is_last = session.pending is not None, index == len(session.rounds) - 1

    def button(name: str, icon: str, do: Callable[..., Any], *, is_disabled: bool = False) -> None:
        label, key = texts(name), f"{'' if name == 'continue' else 'icons-'}{name}-{index}"
        st.button(
            label, key=key, icon=f":material/{icon}:", help=label, type="tertiary", on_click=do,
            disabled=is_pending or is_disabled,
        )  # fmt: skip

    with st.container(horizontal=True, gap="small", vertical_alignment="center", key=f"actions-{index}"):
        if (num := len(round_.versions)) > 1:
            selected = round_.selected
            select = partial(session.select_version, index=index)
            button("earlier", "chevron_left", partial(select, selected - 1), is_disabled=selected == 0)
            st.caption(f"{selected + 1}/{num}", width="content")
            button("later", "chevron_right", partial(select, selected + 1), is_disabled=selected == num - 1)
        if round_.reply.text:
            copy_button(round_.reply.text, f"copy-{index}", texts)
        button("edit", "edit", partial(st.session_state.__setitem__, "editing", round_.versions[0]))
        if is_last:
            button("retry", "refresh", partial(start, session, session.retry))
            button("undo", "delete", session.undo)
        if is_last and round_.reply.is_cut and not session.is_full(round_):
            button("continue", "play_arrow", partial(start, session, session.continue_answer))


def _show_pending(session: ChatSession, index: int, context_limit: int, texts: Texts) -> None:
    """Show the pending answer as it comes, until it has ended.

    Streamlit ends a run by an exception from any of its functions. RerunException starts another run, which shows the
    answer again; StopException means that the person has left or pressed Streamlit's own stop: the answer ends.
    """
    text = session.pending.reply.text if session.pending is not None else ""
    answer(text, f"answer-{index}", texts, is_new=not text)
    place, status, kept_place = st.empty(), st.empty(), st.empty()
    kept_at = time.monotonic()
    try:
        while (pending := session.pending) is not None:
            text = pending.reply.text
            feed(text, place)
            status.caption(escaped(_status(pending, context_limit, texts)))
            if time.monotonic() > kept_at + KEEP_EVERY_S:
                keep(kept(session).json(), kept_place)
                kept_at = time.monotonic()
            time.sleep(DRAW_EVERY_S)
            session.wait(len(text), WAIT_S)
    except RerunException:
        raise
    except BaseException:
        session.stop()
        raise
    st.rerun()


def _status(pending: Pending, context_limit: int, texts: Texts) -> str:
    if place := pending.queue_place:
        return texts("queued", place=place)
    if pending.reply.text:
        return " · ".join(_figures(pending.reply, context_limit, texts))
    return texts("thinking", seconds=time.monotonic() - pending.started)
