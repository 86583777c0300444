"""`ChatSession` with a pipeline that echoes: what is kept of answers, whatever happens to them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from chatglm.errors import ChatGLMError
from chatglm.generation.deltas import Delta
from chatglm.messages import Message
from chatglm.pipeline import load_pipeline
from chatglm.ui.rounds import Reply, Round
from chatglm.ui.session import ChatSession
from tests.folders import make_folder
from tests.serving.servers import eventually
from tests.ui.fake_pipeline import FakePipeline


def make(*questions: str, **kwargs: Any) -> tuple[FakePipeline, ChatSession]:
    """A session in which these questions were asked."""
    pipeline = FakePipeline()
    session = ChatSession(pipeline, **kwargs)  # type: ignore[arg-type]
    for question in questions:
        finish(session.ask(question))
    return pipeline, session


def finish(deltas: Iterator[Delta]) -> str:
    with suppress(ChatGLMError):
        return "".join(delta.text for delta in deltas)
    return ""


def test_messages_are_the_system_instruction_and_all_rounds() -> None:
    pipeline, session = make("a", "b", options={"system": "s", "seed": None, "top_p": 0.5}, history=[("q", "r")])
    assert pipeline.calls[-1] == (["s", "q", "r", "a", "a", "b"], {"seed": None, "top_p": 0.5})
    assert session.messages[:2] == [Message("system", "s"), Message("user", "q")]
    assert session.history == [("q", "r"), ("a", "a"), ("b", "b")]


def test_retry_makes_versions_of_which_one_is_valid() -> None:
    pipeline, session = make("a", "b", options={"seed": 7})
    finish(session.retry())
    finish(session.retry())
    assert [(texts, options["seed"]) for texts, options in pipeline.calls[1:]] == [
        (["a", "a", "b"], 7),
        (["a", "a", "b"], 8),
        (["a", "a", "b"], 9),
    ]
    assert [len(round_.versions) for round_ in session.rounds] == [1, 3]
    session.select_version(0)
    assert session.rounds[-1].reply is session.rounds[-1].versions[0]


def test_retry_and_edit_of_an_earlier_round_drop_later_ones() -> None:
    _, session = make("a", "b", "c")
    finish(session.retry(1))
    assert [question for question, _ in session.history] == ["a", "b"]
    finish(session.edit(0, "x"))
    assert session.history == [("x", "x")]


def test_a_cut_answer_is_continued_in_its_place() -> None:
    pipeline, session = make("abcd", "b", options={"seed": 7})
    deltas = session.ask("long answer")
    for _ in range(4):
        next(deltas)
    session.stop()
    finish(session.retry())
    session.select_version(0)
    assert session.rounds[-1].reply.text == "long"
    assert session.rounds[-1].reply.is_cut
    assert finish(session.continue_answer()) == " answer"
    assert pipeline.calls[-1][1] == {"seed": 7, "answer_start": "long", "max_length": 2048}
    assert [reply.text for reply in session.rounds[-1].versions] == ["long answer"] * 2
    assert not session.rounds[-1].reply.is_cut
    assert session.history == [("abcd", "abcd"), ("b", "b"), ("long answer", "long answer")]


def test_an_answer_goes_on_until_the_context_is_full(tmp_path: Path) -> None:
    """Older rounds make room. Then it is refused, by a message of its own."""
    make_folder(tmp_path, "safetensors", max_sequence_length=64)
    with load_pipeline(tmp_path) as pipeline:
        session = ChatSession(pipeline, {"temperature": 0.0}, [("hello", "world")])
        finish(session.ask("the quick fox"))
        short = session.rounds[-1].reply
        assert (short.prompt_tokens + short.completion_tokens, short.finish_reason) == (64, "length")
        assert not session.is_full(session.rounds[-1])
        assert finish(session.continue_answer())
        for _ in range(9):
            if session.is_full(session.rounds[-1]):
                break
            finish(session.continue_answer())
        reply = session.rounds[-1].reply
        assert reply.text.startswith(short.text)
        assert (reply.finish_reason, reply.dropped_rounds) == ("length", 1)
        assert reply.prompt_tokens + reply.completion_tokens == 64
        with pytest.raises(ChatGLMError, match=r"上下文已满.*context is full"):
            session.continue_answer()
        assert session.pending is None
        assert session.rounds[-1].reply is reply
        # Of a text that is much too long only the beginning is encoded.
        assert session.is_full(Round("a", (Reply("a b" * 3_000_000, "length"),)))


def test_a_continuation_that_fails_leaves_the_answer() -> None:
    _, session = make("a")
    session.rounds = [Round("broken", (Reply("half an answer", "length"),))]
    before = list(session.rounds)
    with pytest.raises(ChatGLMError):
        list(session.continue_answer())
    assert session.rounds == before


def test_undo_returns_the_question_and_clear_forgets() -> None:
    _, session = make("a", "b")
    assert session.undo() == "b"
    assert session.history == [("a", "a")]
    session.clear()
    assert (session.rounds, session.messages, session.last_reply) == ([], [], None)


def test_a_failed_answer_is_a_round_that_the_model_is_not_told_of() -> None:
    pipeline, session = make("a", "broken", "b")
    assert pipeline.calls[-1][0] == ["a", "a", "b"]
    assert [round_.reply.error for round_ in session.rounds] == ["", "The network produced NaN.", ""]
    assert session.history == [("a", "a"), ("b", "b")]
    _, session = make("broken")
    with pytest.raises(ChatGLMError):
        list(session.retry())
    assert len(session.rounds) == 1


def test_a_stopped_answer_keeps_its_text() -> None:
    """At once, and also when the reader leaves."""
    for has_left in (False, True):
        _, session = make()
        deltas = session.ask("abc")
        next(deltas)
        assert session.pending is not None
        deltas.close() if has_left else session.stop()
        assert session.pending is None
        assert finish(deltas) == ""
        assert session.history == [("abc", "a")]
        assert session.rounds[0].reply.finish_reason == "cancelled"


def test_a_stopped_answer_ends_in_the_engine(tiny_folder: Path) -> None:
    with load_pipeline(tiny_folder) as pipeline:
        session = ChatSession(pipeline, {"temperature": 0.0})
        for end in (session.stop, session.clear):
            text = next(delta.text for delta in session.ask("长") if delta.text)
            end()
            eventually(lambda: pipeline.engine.stats().running == 0)
        assert text
        assert session.rounds == []


def test_a_new_question_stops_the_pending_answer() -> None:
    _, session = make()
    first = session.ask("abc")
    next(first)
    assert finish(session.ask("de")) == "de"
    assert finish(first) == ""
    assert session.history == [("abc", "a"), ("de", "de")]


def test_a_retry_that_is_stopped_before_any_text_changes_nothing() -> None:
    _, session = make("a", "b")
    before = list(session.rounds)
    cancel = threading.Event()
    cancel.set()
    finish(session.retry(0, cancel))
    assert session.rounds == before
    assert session.last_reply is not None
    assert not session.last_reply.is_usable


def test_the_round_so_far_is_what_stopping_would_leave() -> None:
    _, session = make("abc")
    assert session.round_so_far is None
    deltas = session.retry()
    assert session.round_so_far is None
    next(deltas)
    so_far = session.round_so_far
    assert so_far is not None
    assert [(reply.text, reply.finish_reason) for reply in so_far.versions] == [("abc", "stop"), ("a", "cancelled")]
    session.stop()
    assert session.rounds == [so_far]


def test_a_pending_answer_knows_why_it_failed() -> None:
    _, session = make()
    deltas, pending = session.ask("broken"), session.pending
    finish(deltas)
    assert pending is not None
    assert isinstance(pending.error, ChatGLMError)
    assert session.rounds[-1].reply.error == str(pending.error)


def test_old_rounds_are_dropped_and_counted() -> None:
    _, session = make("a", "b", "c", max_rounds=2)
    assert session.history == [("b", "b"), ("c", "c")]
    assert session.num_forgotten == 1


def test_wait_follows_the_pending_answer_from_another_thread() -> None:
    _, session = make()
    deltas = session.ask("abc")
    assert session.wait(0, 0.01) == ""
    thread = threading.Thread(target=next, args=(deltas,))
    thread.start()
    assert session.wait(0, 60) == "a"
    thread.join()
    session.stop()
    assert session.wait(0, 60) is None


def test_an_opened_file_changes_the_system_instruction_if_it_has_one() -> None:
    _, session = make(options={"system": "mine"})
    for file, system in (
        ('{"history": []}', "mine"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "mine"),
        ('{"messages": [{"role": "system", "content": "theirs"}]}', "theirs"),
        ('{"history": [], "system": null}', None),
        ('{"history": [], "system": "s"}', "s"),
        ('{"history": [], "system": ""}', None),
    ):
        session.load(file.encode())
        assert session.system == system
    session.system = "s"
    session.open(make()[1].transcript)
    assert session.system is None


def test_an_error_is_told_as_the_interface_wants_it() -> None:
    _, session = make("broken", error_text=lambda error: f"<{type(error).__name__}>")
    assert session.rounds[0].reply.error == "<InvalidLogitsError>"


def test_save_then_load(tmp_path: Path) -> None:
    _, session = make("a", "b", options={"system": "s", "top_p": 0.5, "seed": None})
    finish(session.retry())
    session.select_version(0)
    path = session.save(str(tmp_path / "chat.json"))
    session.save(str(path))  # its own file is replaced
    _, other = make("z", options={"system": "mine", "top_k": 3, "seed": 1})
    other.load(path.read_bytes())
    assert (other.rounds, other.system) == (session.rounds, "s")
    assert other.options == {"top_k": 3, "seed": 1, "top_p": 0.5}
    with pytest.raises(ChatGLMError, match="exists"):
        other.save(str(path))
    other.load(path.read_bytes(), path)
    assert other.save(str(path)) == path  # the file that was opened
    with pytest.raises(ChatGLMError):
        other.load(b"{}")
    assert other.rounds == session.rounds
