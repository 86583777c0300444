"""`ChatSession`: one person's conversation with a model. The terminal and both web pages only draw it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatglm.errors import ChatGLMError
from chatglm.messages import History, Message, check_history
from chatglm.ui.error_texts import BilingualError
from chatglm.ui.rounds import Reply, Round
from chatglm.ui.transcript import Transcript, finished_rounds, read_transcript, usable_history

if TYPE_CHECKING:
    from chatglm.engine import Handle
    from chatglm.generation.deltas import Delta
    from chatglm.pipeline import Pipeline


@dataclass
class Pending:
    """The answer that is being generated to the question of `round`; without it the session would hold `before`.

    `continued` is the reply of which this is the rest. `handle` is there once the request is accepted, `error` once it
    has failed.
    """

    round: Round
    before: list[Round]
    cancel: threading.Event
    continued: Reply | None = None
    reply: Reply = field(default_factory=Reply)
    handle: Handle | None = None
    error: Exception | None = None
    started: float = field(default_factory=time.monotonic)

    @property
    def queue_place(self) -> int:
        """1 for the one that is answered next; 0 if it does not wait for others."""
        return 0 if self.handle is None else self.handle.queue_place


class ChatSession:
    """Rounds with one model. `stop`, `clear` and `wait` may be called from any thread.

    Attributes:
        rounds: finished rounds, oldest first; failed and empty ones too, which the model is not told of.
        pending: the answer being generated, if any.
        last_reply: the latest reply that ended, whether or not it was kept.
        options: parameters of every `Pipeline.submit`.
        system: instruction in front of the conversation, taken from the options.
        num_forgotten: rounds dropped because of `max_rounds`.

    Args:
        pipeline: a loaded model.
        options: see above.
        history: earlier rounds as (question, answer) pairs.
        max_rounds: how many rounds are kept; None keeps all.
        error_text: what a failed answer says of its error.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        options: Mapping[str, Any] | None = None,
        history: Iterable[Sequence[str]] = (),
        *,
        max_rounds: int | None = None,
        error_text: Callable[[Exception], str] = lambda error: str(error) or repr(error),
    ) -> None:
        self._pipeline = pipeline
        self._error_text = error_text
        self.model_name = pipeline.name
        self.set_options(options or {})
        self._max_rounds = max_rounds
        self._saved: set[Path] = set()
        self._changed = threading.Condition()
        self.rounds: list[Round] = []
        self.pending: Pending | None = None
        self._restart(finished_rounds(check_history(history)))

    def set_options(self, options: Mapping[str, Any]) -> None:
        """Parameters of the answers from now on; `system` among them."""
        self.options = dict(options)
        self.system: str | None = self.options.pop("system", None)

    @property
    def history(self) -> History:
        """The rounds that the model is told of, as (question, answer) pairs."""
        return usable_history(self.rounds)

    @property
    def round_so_far(self) -> Round | None:
        """The round that the pending answer would make if it were stopped now; None if it would make none."""
        with self._changed:
            pending = self.pending
            return None if pending is None else _settled(pending, replace(pending.reply, finish_reason="cancelled"))

    @property
    def messages(self) -> list[Message]:
        """What the model is told, the system instruction included."""
        messages = self._instruction()
        for question, answer in self.history:
            messages += [Message("user", question), Message("assistant", answer)]
        return messages

    @property
    def transcript(self) -> Transcript:
        settings = {name: value for name, value in self.options.items() if value is not None}
        return Transcript(self.model_name, self.system or "", self.rounds, settings)

    def ask(self, question: str, cancel: threading.Event | None = None) -> Generator[Delta]:
        """Answer `question`; a pending answer is stopped first.

        However the iteration ends, the text so far is kept, except after an error.

        Args:
            question: what the user says.
            cancel: ends the answer within a token.

        Raises:
            ChatGLMError: while iterating; `retry` asks again.
        """
        self.stop()
        return self._answer(Round(question), self.rounds, cancel)

    def retry(self, index: int = -1, cancel: threading.Event | None = None) -> Generator[Delta]:
        """Answer the question of a round again; later rounds go. The earlier answer stays unless there is a new one.

        Arguments and errors as `ask`. A fixed seed is raised by one for every version: it would give the same answer.
        """
        self.stop()
        return self._answer(self.rounds[index], self.rounds[:index], cancel)

    def edit(self, index: int, question: str, cancel: threading.Event | None = None) -> Generator[Delta]:
        """Put another question in the place of a round and answer it; later rounds go. Otherwise as `ask`."""
        self.stop()
        return self._answer(Round(question), self.rounds[:index], cancel)

    def continue_answer(self, index: int = -1, cancel: threading.Event | None = None) -> Generator[Delta]:
        """Go on with an answer that was cut, within the whole context; later rounds go. Otherwise as `ask`.

        The deltas hold what is new.

        Raises:
            ChatGLMError: at once, if there is no room (see `is_full`).
        """
        self.stop()
        round_ = self.rounds[index]
        if self.is_full(round_):
            raise BilingualError("上下文已满，无法继续这个回答。", "The context is full: this answer cannot go on.")
        return self._answer(round_, self.rounds[:index], cancel, continued=round_.reply)

    def is_full(self, round_: Round) -> bool:
        """Whether an answer was cut and cannot go on: with its question alone it fills the model's context."""
        if not round_.reply.is_cut:
            return False
        question = [*self._instruction(), Message("user", round_.question)]
        return not self._pipeline.has_room(question, round_.reply.text)

    def undo(self, index: int = -1) -> str:
        """Remove a round and those after it; returns its question."""
        self.stop()
        question = self.rounds[index].question
        self.rounds = self.rounds[:index]
        return question

    def select_version(self, version: int, index: int = -1) -> None:
        """Make another answer of a round the valid one."""
        self.rounds[index] = replace(self.rounds[index], selected=version)

    def stop(self) -> None:
        """End the pending answer and keep its text; does not wait for the network's current step."""
        if (pending := self.pending) is not None:
            pending.cancel.set()
            self._finish(pending)

    def clear(self) -> None:
        """Forget everything; a pending answer ends."""
        self.stop()
        self._restart([])

    def save(self, name: str) -> Path:
        """Write the transcript: JSON if the name ends in .json, else Markdown. Returns the absolute path.

        Raises:
            ChatGLMError: it cannot be written, or the file exists and is not from this session.
        """
        try:
            path = Path(name).expanduser().resolve()
            self.transcript.save(path, may_replace=path in self._saved)
        except (OSError, RuntimeError, ValueError) as error:  # no such home folder, a loop of links, a name with NUL
            reason = getattr(error, "strerror", None) or error
            raise BilingualError(f"无法保存到 {name}。", f"Cannot save there: {reason}.") from None
        self._saved.add(path)
        return path

    def load(self, data: bytes, path: Path | None = None) -> None:
        """Continue a saved conversation, with its system instruction and parameters.

        Args:
            data: of a file, see `read_transcript`.
            path: of the file; it may be saved to from now on.

        Raises:
            ChatGLMError: it is none; the session is unchanged.
        """
        self.open(read_transcript(data))
        if path is not None:
            self._saved.add(path.expanduser().resolve())

    def open(self, transcript: Transcript) -> None:
        """Continue a conversation; what it does not say (a system instruction, a parameter) stays as it is."""
        self.stop()
        self.options |= transcript.settings
        if transcript.system is not None:
            self.system = transcript.system or None
        self._restart(transcript.rounds)

    def wait(self, num_seen: int, timeout: float) -> str | None:
        """Wait until the pending answer has more than `num_seen` characters, for at most `timeout` seconds.

        Returns:
            its text so far; None when no answer is pending any more.
        """

        def is_changed() -> bool:
            return self.pending is None or len(self.pending.reply.text) > num_seen

        with self._changed:
            self._changed.wait_for(is_changed, timeout)
            return None if self.pending is None else self.pending.reply.text

    def _instruction(self) -> list[Message]:
        return [Message("system", self.system)] if self.system else []

    def _restart(self, rounds: Sequence[Round]) -> None:
        self.rounds = list(rounds)
        self.last_reply: Reply | None = None
        self.num_forgotten = 0

    def _answer(
        self, round_: Round, past: list[Round], cancel: threading.Event | None, continued: Reply | None = None
    ) -> Generator[Delta]:
        with self._changed:
            pending = self.pending = Pending(round_, self.rounds, cancel or threading.Event(), continued)
            self.rounds = past
        options = dict(self.options)
        if continued is not None:
            pending.reply = Reply(continued.text)
            options |= {"answer_start": continued.text, "max_length": self._pipeline.context_limit}
        elif options.get("seed") is not None:
            options["seed"] += len(round_.versions)
        return self._stream(pending, [*self.messages, Message("user", round_.question)], options)

    def _stream(self, pending: Pending, messages: list[Message], options: dict[str, Any]) -> Generator[Delta]:
        try:
            pending.handle = self._pipeline.submit(messages, cancel=pending.cancel, **options)
            for delta in pending.handle:
                with self._changed:
                    if self.pending is not pending:
                        return
                    pending.reply = pending.reply.extended(delta, time.monotonic() - pending.started)
                    self._changed.notify_all()
                yield delta
        except Exception as error:
            pending.error = error
            self._finish(pending, self._error_text(error))
            raise
        except BaseException:  # the reader has left, or Ctrl+C was pressed again
            pending.cancel.set()
            raise
        finally:
            self._finish(pending)

    def _finish(self, pending: Pending, error: str = "") -> None:
        """Make a round of the pending answer, unless that was done already."""
        with self._changed:
            if self.pending is not pending:
                return
            self.pending = None
            reason = "error" if error else pending.reply.finish_reason or "cancelled"
            reply = self.last_reply = replace(pending.reply, finish_reason=reason, error=error)
            round_ = _settled(pending, reply)
            rounds = pending.before if round_ is None else [*self.rounds, round_]
            num_excess = max(0, len(rounds) - (self._max_rounds or len(rounds)))
            self.rounds = rounds[num_excess:] if num_excess else rounds
            self.num_forgotten += num_excess
            self._changed.notify_all()


def _settled(pending: Pending, reply: Reply) -> Round | None:
    """The round that the reply makes; None if what was there before is worth more."""
    if pending.continued is not None:
        return pending.round.replaced(reply) if reply.is_usable else None
    usable = tuple(version for version in pending.round.versions if version.is_usable)
    if usable and not reply.is_usable:
        return None
    return Round(pending.round.question, (*usable, reply), selected=len(usable))


def answer_in_background(deltas: Iterable[Delta]) -> threading.Thread:
    """Generate an answer in a thread of its own; `ChatSession.wait` follows it, and its reply tells of errors."""

    def run() -> None:
        with suppress(ChatGLMError):
            for _ in deltas:
                pass

    thread = threading.Thread(target=run, name="answer of a page", daemon=True)
    thread.start()
    return thread
